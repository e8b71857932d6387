"""`raykd doctor`: looks for what would go wrong with a run, before it starts.

With a cluster, a process on every node reports on its machine and exchanges files with the others
through the store; without one, this machine alone is checked. The checks are functions of what the
machines reported, so they need no Ray.
"""

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.config.experiment import Experiment, basis
from raykd.config.scale import Scale, least
from raykd.core.errors import RaykdError
from raykd.launch import doctor_node
from raykd.launch.capacity import fitting, worker_needs
from raykd.launch.cluster import address_file, address_to_join, connected
from raykd.planning.forecast import missing_bytes
from raykd.recipes import TeacherRun
from raykd.storage.store import Store

ANSWER_SECONDS = 120.0  # for a node to start a process
SKEW_SECONDS = 3.0  # between two clocks: checkpoints and notes are compared by their times
LITTLE_BYTES, LEAST_BYTES = 10 << 30, 1 << 30  # free on a disk, to warn and to fail
STRICT = ("raykd", "torch", "ray", "python")  # a difference in other packages is a warning
DRIVER = "this machine"
_SHM = "containers: --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm"
_LIMITS = (  # check, key of the facts, least amount, its unit, advice
    ("/dev/shm", "shm_bytes", 2 << 30, 2**30, " GiB", _SHM),  # else Ray's objects go to a disk
    ("open files", "open_files", 65536, 1, "", "ulimit -n 65536 before `ray start`"),
    (
        "temporary files",
        "temp_free",
        LITTLE_BYTES,
        2**30,
        " GiB free",
        "make room for Ray's sessions, or set RAY_TMPDIR",
    ),
)

Machines = Mapping[str, Mapping[str, Any]]  # name -> `doctor_node.facts()`


@dataclass(frozen=True)
class Finding:
    """One check and its result."""

    check: str
    status: Literal["ok", "warning", "failed"]
    said: str
    todo: str = ""  # unless it is ok


def examine(store: Store, scale: Scale, experiment: Experiment | None = None) -> list[Finding]:
    """Every check of a store, and of the cluster that a run would join.

    With an `experiment`, whose data were read, also whether its caches and its workers fit.
    """
    needed = 0 if experiment is None else missing_bytes(experiment, store)
    if address_to_join(scale) is None:
        said = f"none runs here; raykd starts one of its own: {DRIVER} alone is looked at"
        return [stale(), Finding("cluster", "ok", said), *_machines(store, needed, {})]
    try:
        with connected(scale, lambda text: None):
            return _cluster(store, scale, experiment, needed)
    except (RaykdError, RuntimeError, RayError) as error:  # Ray's own: versions, a lost node
        said = str(error).strip().splitlines()[0]
        todo = f"{DRIVER} alone was looked at; start the cluster, or correct --address"
        return [Finding("cluster", "failed", said, todo), *_machines(store, needed, {})]


def stale() -> Finding:
    """Ray's note of the last cluster on this machine names one that runs."""
    note = address_file()
    if note.is_file() and address_to_join(Scale()) is None:
        said = f"{note} names {note.read_text().strip()}, which does not answer"
        return Finding("last cluster", "warning", said, f"rm {note}: Ray waits for it otherwise")
    return Finding("last cluster", "ok", "no dead one is noted")


def _machines(store: Store, needed: int, probes: Mapping[str, Any]) -> list[Finding]:
    """Checks of this machine, and of those on which `probes` run."""
    machines = {DRIVER: doctor_node.facts()}
    skews: dict[str, float] = {}
    for name, probe in probes.items():
        machines[name] = ray.get(probe.facts.remote())
        before = time.time()
        there: float = ray.get(probe.clock.remote())  # pyright: ignore[reportAssignmentType]
        after = time.time()
        # The node read its clock between the two: a difference within them is travel time.
        skews[name] = there - after if there > after else min(0.0, there - before)
    with _marks(store) as (place, folder):
        wrong = {DRIVER: doctor_node.leave(place, f"{folder}/{DRIVER}", DRIVER)}
        left = {n: p.leave.remote(place, f"{folder}/{n}", n) for n, p in probes.items()}
        wrong |= {name: ray.get(answer) for name, answer in left.items()}
        views: dict[str, Any] = {DRIVER: doctor_node.seen(place, folder)}
        views |= {name: ray.get(p.seen.remote(place, folder)) for name, p in probes.items()}
    views = {name: wrong[name] or view for name, view in views.items()}
    bound = needed if store.local_bytes is None else min(needed, store.local_bytes)
    root = next(path for path in (store.root, *store.root.parents) if path.is_dir())
    return [
        versions(machines),
        *([clocks(skews)] if skews else []),
        auth(machines),
        *limits(machines),
        shared(store.shown, views),
        room(str(root), shutil.disk_usage(root).free, bound),
    ]


@contextlib.contextmanager
def _marks(store: Store) -> Iterator[tuple[str, str]]:
    """The store's place and a folder in it for files of the machines, removed at the end."""
    folder = f"doctor-{secrets.token_hex(4)}"
    made = [path for path in (store.root, *store.root.parents) if not path.exists()]
    if store.node_cache is None:
        with contextlib.suppress(OSError):  # writing into it reports what is wrong
            (store.root / folder).mkdir(parents=True)
    try:
        yield store.url, folder
    finally:
        with contextlib.suppress(RaykdError, OSError):  # it was reported already
            store.remove(store.root / folder)
            for path in made:
                path.rmdir()


def _cluster(
    store: Store, scale: Scale, experiment: Experiment | None, needed: int
) -> list[Finding]:
    """Checks of a cluster that was joined."""
    nodes = {}
    for node in ray.nodes():
        if node["Alive"]:
            name = node["NodeManagerHostname"]
            nodes[name if name not in nodes else f"{name} ({node['NodeID'][:6]})"] = node
    findings = [Finding("cluster", "ok", f"{len(nodes)} nodes: {', '.join(nodes)}")]
    probes, silent = _probes(nodes)
    if silent:
        said = "; ".join(f"{name}: {why}" for name, why in silent.items())
        findings.append(Finding("nodes", "failed", said, "look at the logs of these nodes"))
    findings += _machines(store, needed, probes)
    seen: dict[str, Any] = {name: ray.get(probe.facts.remote()) for name, probe in probes.items()}
    offered = {name: node["Resources"].get("GPU", 0.0) for name, node in nodes.items()}
    findings.append(gpus({name: each["gpus"] for name, each in seen.items()}, offered))
    groups = [1, scale.workers]
    for run in map(basis, () if experiment is None else experiment.runs):
        assert experiment is not None
        groups.append(experiment.workers(run))
        if isinstance(run.teacher, TeacherRun):
            groups.append(experiment.teacher_workers(run.teacher))
    fit, grows = fitting(scale), scale.wait_minutes > 0
    wide = [least(workers) for workers in groups]
    findings.append(fits(wide, fit, worker_needs(scale), scale.parallel, grows=grows))
    findings.append(_dashboard(needed=max(wide) > 1))
    return findings


def _probes(nodes: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """A process on every node, and why others have none."""
    cloudpickle.register_pickle_by_value(doctor_node)
    try:
        kind: Any = ray.remote(num_cpus=0, max_restarts=0)(doctor_node.Probe)
        started = {}
        for name, node in nodes.items():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            started[name] = kind.options(scheduling_strategy=there).remote()
        first = {name: probe.clock.remote() for name, probe in started.items()}
    finally:
        cloudpickle.unregister_pickle_by_value(doctor_node)
    silent, until = {}, time.monotonic() + ANSWER_SECONDS
    for name, answer in first.items():
        try:
            ray.get(answer, timeout=max(1.0, until - time.monotonic()))
        except Exception as error:
            silent[name] = (str(error).strip() or type(error).__name__).splitlines()[-1]
            del started[name]
    return started, silent


def _dashboard(*, needed: bool) -> Finding:
    """The dashboard answers about state, as Ray Train's clean-up asks it to."""
    from ray.util.state import list_nodes

    try:
        list_nodes(timeout=10, raise_on_missing_output=False)
    except Exception as error:
        said = f"does not answer ({type(error).__name__})"
        todo = "start the head with --include-dashboard=true: Ray Train's runs that are stopped "
        todo += "early keep their processors for ever without it (Ray 2.60)"
        return Finding("dashboard", "failed" if needed else "warning", said, todo)
    return Finding("dashboard", "ok", "answers")


def versions(machines: Machines) -> Finding:
    """All machines run the same code as the first, the driver's."""
    driver, found = next(iter(machines)), {n: each["versions"] for n, each in machines.items()}
    differ = [
        (package, f"{name} has {package} {version}, {driver} {found[driver].get(package)}")
        for name, each in found.items()
        for package, version in each.items()
        if version != found[driver].get(package)
    ]
    if not differ:
        said = ", ".join(f"{package} {version}" for package, version in found[driver].items())
        return Finding("versions", "ok", said)
    todo = "install the same versions on every machine, as from one image or one constraints file"
    status = "failed" if any(package in STRICT for package, _ in differ) else "warning"
    return Finding("versions", status, "; ".join(line for _, line in differ), todo)


def clocks(skews: Mapping[str, float]) -> Finding:
    """Clocks agree; `skews` are seconds after the driver's, travel left out."""
    far = {name: skew for name, skew in skews.items() if abs(skew) > SKEW_SECONDS}
    if far:
        said = ", ".join(f"{name} is off by {skew:+.1f} s" for name, skew in far.items())
        return Finding("clocks", "failed", said, "let chrony or ntpd set the clocks")
    most = max(abs(skew) for skew in skews.values())
    return Finding("clocks", "ok", f"{len(skews)} nodes, {most:.1f} s apart at most")


def shared(place: str, views: Mapping[str, Mapping[str, str] | str]) -> Finding:
    """Every machine has written into the store and sees what all others wrote.

    `views`: by machine, the files that it sees there, or what went wrong. The driver's is first.
    """
    driver = next(iter(views))
    wrong = [f"{name}: {view}" for name, view in views.items() if isinstance(view, str)]
    for name, view in views.items():
        unseen = [] if isinstance(view, str) else [other for other in views if other not in view]
        if driver in unseen and name != driver:
            wrong.append(f"{name} sees another folder there than {driver}")
        elif unseen:
            wrong.append(f"{name} does not see what {', '.join(unseen)} wrote")
    if wrong:
        todo = "use a folder that all nodes mount at the same path, or a URL (s3://, gs://)"
        return Finding("shared store", "failed", f"{place}: " + "; ".join(wrong), todo)
    others = f" with {len(views) - 1} nodes" if len(views) > 1 else ""
    return Finding("shared store", "ok", f"{place}: written and read{others}")


def room(what: str, free: int, needed: int = 0) -> Finding:
    """A disk has room, for `needed` bytes of caches where that is known."""
    said = f"{what}: {free / 1e9:.1f} GB free"
    if needed:
        said += f", caches to make take {needed / 1e9:.2f} GB"
    if needed > free or free < LEAST_BYTES:
        return Finding("room", "failed", said, "make room, or choose another disk")
    if free - needed < LITTLE_BYTES:
        return Finding("room", "warning", said, "make room: logs and checkpoints come on top")
    return Finding("room", "ok", said)


def limits(machines: Machines) -> list[Finding]:
    """Shared memory, open files and temporary files of machines are enough."""
    findings = []
    for check, key, least_amount, unit, name, todo in _LIMITS:
        amounts = {n: each[key] for n, each in machines.items() if each[key] is not None}
        low = {n: amount for n, amount in amounts.items() if 0 <= amount < least_amount}
        said = ", ".join(f"{n} {round(amount / unit, 2):.10g}{name}" for n, amount in low.items())
        good = Finding(check, "ok", f"{least_amount // unit}{name} or more")
        findings.append(Finding(check, "warning", said, todo) if low else good)
    return findings


def auth(machines: Machines) -> Finding:
    """All machines ask for a token and have one, or none does."""
    check = "authentication"
    modes = {name: each["auth_mode"] for name, each in machines.items()}
    tokens, mode = [n for n, each in machines.items() if each["token"]], next(iter(modes.values()))
    if len(set(modes.values())) > 1:
        said = ", ".join(f"{name} {mode or 'unset'}" for name, mode in modes.items())
        todo = "set RAY_AUTH_MODE to the same on every machine before `ray start`"
        return Finding(check, "failed", f"RAY_AUTH_MODE: {said}", todo)
    if mode == "token":
        if lacking := [name for name in machines if name not in tokens]:
            todo = "`ray get-auth-token --generate`, and the same ~/.ray/auth_token everywhere"
            return Finding(check, "failed", f"no token on {', '.join(lacking)}", todo)
        return Finding(check, "ok", "a token, on every machine: its holders can run code there")
    if mode == "disabled":
        if len(machines) == 1:
            said = "RAY_AUTH_MODE=disabled: none; whoever has an account on this machine can run "
            return Finding(check, "ok", f"{said}code in a cluster that raykd starts, as its user")
        todo = "RAY_AUTH_MODE=token, unless the network of the nodes is closed to others"
        return Finding(check, "warning", "none: all who reach a node can run code", todo)
    if len(machines) == 1 and not tokens:
        said = "a cluster that raykd starts here asks for a token that its user alone can read"
        return Finding(check, "ok", said)
    said = "RAY_AUTH_MODE is not set"
    said += ", and a token lies there: `ray start` asks for it, clients send none" if tokens else ""
    todo = "set RAY_AUTH_MODE=token (or disabled) wherever Ray or raykd is started"
    return Finding(check, "warning", said, todo)


def gpus(seen: Mapping[str, int | None], offered: Mapping[str, float]) -> Finding:
    """The GPUs that Ray offers on each node are those that torch sees there."""
    more = [n for n, count in offered.items() if seen.get(n) is not None and count > (seen[n] or 0)]
    less = [n for n, count in offered.items() if count < (seen.get(n) or 0)]
    said = ", ".join(f"{n}: Ray {offered[n]:g}, torch {seen.get(n)}" for n in offered)
    if more:
        todo = f"look at the driver and torch's CUDA build on {', '.join(more)}"
        return Finding("GPUs", "failed", said, todo)
    if less:
        return Finding("GPUs", "warning", said, "start the node with --num-gpus, or leave them out")
    return Finding("GPUs", "ok", said if any(offered.values()) else "none, and none offered")


def fits(
    wide: Sequence[int], fit: int, scale: str, parallel: int | None = None, *, grows: bool = False
) -> Finding:
    """Groups of `wide` workers each, and `parallel` single ones, fit the cluster.

    `fit` is how many workers of this `scale` do; `grows`: a run waits for nodes to come.
    """
    most = max(wide, default=1)
    said = f"{fit} workers with {scale} fit, at most {most} train one network"
    if most > fit and grows:
        todo = "the run will wait for more of them, up to scale.wait_minutes"
        return Finding("fit", "warning", said, todo)
    if most > fit:
        return Finding("fit", "failed", said, "lower scale.workers, or add nodes")
    if parallel is not None and parallel > fit:
        said = f"{fit} workers with {scale} fit, scale.parallel is {parallel}"
        return Finding("fit", "warning", said, "lower scale.parallel, or add nodes")
    return Finding("fit", "ok", said)
