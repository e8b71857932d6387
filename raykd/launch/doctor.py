"""`raykd doctor`: looks for what would go wrong with a run, before it starts.

With a cluster, a process on every node reports on its machine and exchanges files with the others
through the store; without one, this machine alone is checked. The checks are functions of what the
machines reported, so they need no Ray.
"""

import contextlib
import functools
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.config.experiment import Experiment, basis
from raykd.config.scale import Scale, least
from raykd.core.errors import RaykdError, last_line
from raykd.launch import doctor_node
from raykd.launch.capacity import fitting, worker_needs
from raykd.launch.cluster import address_file, address_to_join, connected
from raykd.planning.remaining import missing_bytes
from raykd.recipes import TeacherRun
from raykd.storage.store import Store

ANSWER_SECONDS = 120.0  # for a node to start a process
SKEW_SECONDS = 3.0  # between two clocks: checkpoints and notes are compared by their times
LITTLE_BYTES, LEAST_BYTES = 10 << 30, 1 << 30  # free on a disk, to warn and to fail
STRICT = ("raykd", "torch", "ray", "python")  # a difference in other packages is a warning
DRIVER = "this machine"
_SHM = "containers: --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm"
_TEMPORARY = "make room for Ray's sessions, or set RAY_TMPDIR"
_LIMITS = (  # check, key of the facts, least amount, its unit, advice
    ("/dev/shm", "shm_bytes", 2 << 30, 2**30, " GiB", _SHM),  # else Ray's objects go to a disk
    ("open files", "open_files", 65536, 1, "", "ulimit -n 65536 before `ray start`"),
    ("temporary files", "temp_free", LITTLE_BYTES, 2**30, " GiB free", _TEMPORARY),
)

Machines = Mapping[str, Mapping[str, Any]]  # name -> `doctor_node.facts()`
Remote = Callable[..., Any]  # calls a function on a node; returns a reference to its value


@dataclass(frozen=True)
class Finding:
    """One check and its result."""

    check: str
    status: Literal["ok", "warning", "failed"]
    message: str
    advice: str = ""  # unless it is ok


def examine(store: Store, scale: Scale, experiment: Experiment | None = None) -> list[Finding]:
    """Findings about a store, and about the cluster that a run would join.

    With an `experiment`, whose data were read, also whether its caches and its workers fit.
    """
    needed = 0 if experiment is None else missing_bytes(experiment, store)
    if address_to_join(scale) is None:
        message = f"none runs here; raykd starts one of its own: {DRIVER} alone is looked at"
        return [stale(), Finding("cluster", "ok", message), *_machines(store, needed, {})]
    try:
        with connected(scale, lambda text: None):
            return _cluster(store, scale, experiment, needed)
    except (RaykdError, RuntimeError, RayError) as error:  # Ray's own: versions, a lost node
        message = str(error).strip().splitlines()[0]
        advice = f"{DRIVER} alone was looked at; start the cluster, or correct --address"
        return [Finding("cluster", "failed", message, advice), *_machines(store, needed, {})]


def stale() -> Finding:
    """Check that Ray's note of this machine's last cluster names one that runs."""
    note = address_file()
    if note.is_file() and address_to_join(Scale()) is None:
        message = f"{note} names {note.read_text().strip()}, which does not answer"
        return Finding("last cluster", "warning", message, f"rm {note}: Ray waits for it otherwise")
    return Finding("last cluster", "ok", "no dead one is noted")


def _machines(
    store: Store,
    needed: int,
    nodes: Mapping[str, Remote],
    offered: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Checks of this machine, and of nodes with the GPUs that Ray has `offered` there."""
    machines = {DRIVER: doctor_node.facts()}
    machines |= _values({name: call(doctor_node.facts) for name, call in nodes.items()})
    # Clocks: a difference between asking and the answer is travel time.
    skews: dict[str, float] = {}
    for name, call in nodes.items():
        before = time.time()
        there: float = ray.get(call(doctor_node.clock))  # pyright: ignore[reportAssignmentType]
        after = time.time()
        skews[name] = there - after if there > after else min(0.0, there - before)
    # Every machine writes a file into the store, and then reads those of all.
    write, read = doctor_node.write_mark, doctor_node.read_marks
    with _marks(store) as (url, folder):
        errors = {DRIVER: write(url, f"{folder}/{DRIVER}", DRIVER)}
        errors |= _values({n: call(write, url, f"{folder}/{n}", n) for n, call in nodes.items()})
        views: dict[str, Any] = {DRIVER: read(url, folder)}
        views |= _values({name: call(read, url, folder) for name, call in nodes.items()})
    views = {name: errors[name] or view for name, view in views.items()}
    bound = needed if store.local_bytes is None else min(needed, store.local_bytes)
    root = next(path for path in (store.root, *store.root.parents) if path.is_dir())
    return [
        versions(machines),
        *([clocks(skews)] if skews else []),
        auth(machines),
        *limits(machines),
        shared(store.shown, views),
        room(str(root), shutil.disk_usage(root).free, bound),
        *([] if offered is None else [gpus(machines, offered)]),
    ]


def _values(answers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ray.get(answer) for name, answer in answers.items()}


@contextlib.contextmanager
def _marks(store: Store) -> Iterator[tuple[str, str]]:
    """Context manager: the store's URL, and a folder in it for files of the machines."""
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
    answering, silent = _reachable({name: node["NodeID"] for name, node in nodes.items()})
    if silent:
        message = "; ".join(f"{name}: {why}" for name, why in silent.items())
        findings.append(Finding("nodes", "failed", message, "look at the logs of these nodes"))
    offered = {name: node["Resources"].get("GPU", 0.0) for name, node in nodes.items()}
    findings += _machines(store, needed, answering, offered)
    groups = [scale.workers]
    for run in map(basis, () if experiment is None else experiment.runs):
        assert experiment is not None
        groups.append(experiment.workers(run))
        for teacher in run.members():
            if isinstance(teacher, TeacherRun):
                groups.append(experiment.teacher_workers(teacher))
    most, grows = max(1, *map(least, groups)), scale.wait_minutes > 0
    findings.append(fits(most, fitting(scale), worker_needs(scale), scale.parallel, grows=grows))
    findings.append(_dashboard(needed=most > 1))
    return findings


def _reachable(nodes: Mapping[str, str]) -> tuple[dict[str, Remote], dict[str, str]]:
    """Ways to call a function on the nodes that answer, by their ids; and why others do not."""
    cloudpickle.register_pickle_by_value(doctor_node)
    calls: dict[str, Remote] = {}
    for name, node in nodes.items():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        calls[name] = functools.partial(_call, options)
    first = {name: call(doctor_node.clock) for name, call in calls.items()}
    silent, until = {}, time.monotonic() + ANSWER_SECONDS
    for name, answer in first.items():
        try:
            ray.get(answer, timeout=max(1.0, until - time.monotonic()))
        except Exception as error:
            silent[name] = last_line(error)
            del calls[name]
    return calls, silent


def _call(options: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Reference to the value of a call in a Ray task."""
    return ray.remote(**options)(function).remote(*arguments)


def _dashboard(*, needed: bool) -> Finding:
    """Check that the dashboard answers about state: Ray Train's clean-up needs it."""
    from ray.util.state import list_nodes

    try:
        list_nodes(timeout=10, raise_on_missing_output=False)
    except Exception as error:
        message = f"does not answer ({type(error).__name__})"
        advice = "start the head with --include-dashboard=true: Ray Train's runs that are stopped "
        advice += "early keep their processors for ever without it (Ray 2.60)"
        return Finding("dashboard", "failed" if needed else "warning", message, advice)
    return Finding("dashboard", "ok", "answers")


def versions(machines: Machines) -> Finding:
    """Check that all machines run the same versions as the first, the driver's."""
    driver, installed = next(iter(machines)), {n: each["versions"] for n, each in machines.items()}
    differ = [
        (package, f"{name} has {package} {version}, {driver} {installed[driver].get(package)}")
        for name, each in installed.items()
        for package, version in each.items()
        if version != installed[driver].get(package)
    ]
    if not differ:
        message = ", ".join(
            f"{package} {version}" for package, version in installed[driver].items()
        )
        return Finding("versions", "ok", message)
    advice = "install the same versions on every machine, as from one image or one constraints file"
    status = "failed" if any(package in STRICT for package, _ in differ) else "warning"
    return Finding("versions", status, "; ".join(line for _, line in differ), advice)


def clocks(skews: Mapping[str, float]) -> Finding:
    """Check that clocks agree; `skews` are seconds after the driver's, travel time left out."""
    far = {name: skew for name, skew in skews.items() if abs(skew) > SKEW_SECONDS}
    if far:
        message = ", ".join(f"{name} is off by {skew:+.1f} s" for name, skew in far.items())
        return Finding("clocks", "failed", message, "let chrony or ntpd set the clocks")
    most = max(abs(skew) for skew in skews.values())
    return Finding("clocks", "ok", f"{len(skews)} nodes, {most:.1f} s apart at most")


def shared(store: str, views: Mapping[str, Mapping[str, str] | str]) -> Finding:
    """Check that every machine writes into the store and reads what the others wrote.

    `views`: by machine, the files that it sees there, or what went wrong. The driver's is first.
    """
    driver = next(iter(views))
    errors = [f"{name}: {view}" for name, view in views.items() if isinstance(view, str)]
    for name, view in views.items():
        unseen = [] if isinstance(view, str) else [other for other in views if other not in view]
        if driver in unseen and name != driver:
            errors.append(f"{name} sees another folder there than {driver}")
        elif unseen:
            errors.append(f"{name} does not see what {', '.join(unseen)} wrote")
    if errors:
        advice = "use a folder that all nodes mount at the same path, or a URL (s3://, gs://)"
        return Finding("shared store", "failed", f"{store}: " + "; ".join(errors), advice)
    others = f" with {len(views) - 1} nodes" if len(views) > 1 else ""
    return Finding("shared store", "ok", f"{store}: written and read{others}")


def room(path: str, free: int, needed: int = 0) -> Finding:
    """Check that a disk has room, for `needed` bytes of caches where that is known."""
    message = f"{path}: {free / 1e9:.1f} GB free"
    if needed:
        message += f", caches to make take {needed / 1e9:.2f} GB"
    if needed > free or free < LEAST_BYTES:
        return Finding("room", "failed", message, "make room, or choose another disk")
    if free - needed < LITTLE_BYTES:
        return Finding("room", "warning", message, "make room: logs and checkpoints come on top")
    return Finding("room", "ok", message)


def limits(machines: Machines) -> list[Finding]:
    """Check the limits of shared memory, open files and temporary files."""
    findings = []
    for check, key, least_amount, unit, name, advice in _LIMITS:
        amounts = {n: each[key] for n, each in machines.items() if each[key] is not None}
        low = {n: amount for n, amount in amounts.items() if 0 <= amount < least_amount}
        message = ", ".join(
            f"{n} {round(amount / unit, 2):.10g}{name}" for n, amount in low.items()
        )
        good = Finding(check, "ok", f"{least_amount // unit}{name} or more")
        findings.append(Finding(check, "warning", message, advice) if low else good)
    return findings


def auth(machines: Machines) -> Finding:
    """Check that all machines ask for a token and have one, or that none does."""
    modes = {name: each["auth_mode"] or "unset" for name, each in machines.items()}
    lacking = [name for name, each in machines.items() if not each["token"]]
    mode, is_alone, advice = next(iter(modes.values())), len(machines) == 1, ""
    if len({*modes.values()}) > 1:
        status = "failed"
        message = "RAY_AUTH_MODE: " + ", ".join(f"{name} {mode}" for name, mode in modes.items())
        advice = "set RAY_AUTH_MODE to the same on every machine before `ray start`"
    elif mode == "token" and lacking:
        status, message = "failed", f"no token on {', '.join(lacking)}"
        advice = "`ray get-auth-token --generate`, and the same ~/.ray/auth_token everywhere"
    elif mode == "token":
        status, message = "ok", "a token, on every machine: its holders can run code there"
    elif mode == "disabled" and is_alone:
        status = "ok"
        message = "RAY_AUTH_MODE=disabled: none; whoever has an account on this machine can run "
        message += "code in a cluster that raykd starts, as its user"
    elif mode == "disabled":
        status, message = "warning", "none: all who reach a node can run code"
        advice = "RAY_AUTH_MODE=token, unless the network of the nodes is closed to others"
    elif is_alone and lacking:
        status = "ok"
        message = "a cluster that raykd starts here asks for a token that its user alone can read"
    else:
        status, message = "warning", "RAY_AUTH_MODE is not set"
        if len(lacking) < len(machines):
            message += ", and a token lies there: `ray start` asks for it, clients send none"
        advice = "set RAY_AUTH_MODE=token (or disabled) wherever Ray or raykd is started"
    return Finding("authentication", status, message, advice)


def gpus(machines: Machines, offered: Mapping[str, float]) -> Finding:
    """Check that the GPUs that Ray has `offered` on a node are those that torch sees there."""
    seen = {name: machines.get(name, {}).get("gpus") for name in offered}
    more = [n for n, count in seen.items() if count is not None and offered[n] > count]
    less = [n for n, count in seen.items() if offered[n] < (count or 0)]
    message = ", ".join(f"{n}: Ray {offered[n]:g}, torch {seen[n]}" for n in offered)
    if more:
        advice = f"look at the driver and torch's CUDA build on {', '.join(more)}"
        return Finding("GPUs", "failed", message, advice)
    if less:
        return Finding(
            "GPUs", "warning", message, "start the node with --num-gpus, or leave them out"
        )
    return Finding("GPUs", "ok", message if any(offered.values()) else "none, and none offered")


def fits(
    most: int, fit: int, scale: str, parallel: int | None = None, *, grows: bool = False
) -> Finding:
    """Check that a group of `most` workers, and `parallel` single ones, fit the cluster.

    `fit` is how many workers of this `scale` do; `grows`: a run waits for nodes to come.
    """
    message = f"{fit} workers with {scale} fit, at most {most} train one network"
    if most > fit and grows:
        advice = "the run will wait for more of them, up to scale.wait_minutes"
        return Finding("fit", "warning", message, advice)
    if most > fit:
        return Finding("fit", "failed", message, "lower scale.workers, or add nodes")
    if parallel is not None and parallel > fit:
        message = f"{fit} workers with {scale} fit, scale.parallel is {parallel}"
        return Finding("fit", "warning", message, "lower scale.parallel, or add nodes")
    return Finding("fit", "ok", message)
