"""`raykd doctor`: what would go wrong with a run, looked for before it.

With a cluster, a process on every node says what it has, and writes into the store and reads there
what the others wrote; without one, this machine is looked at.
"""

import contextlib
import importlib
import os
import secrets
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.config.experiment import Experiment, basis
from raykd.config.scale import Scale, least
from raykd.core.errors import RaykdError
from raykd.launch import doctor_node, doctor_rules
from raykd.launch.capacity import fitting, worker_needs
from raykd.launch.cluster import address_file, address_to_join, connected
from raykd.launch.doctor_rules import Finding
from raykd.planning.forecast import missing_bytes
from raykd.recipes import TeacherRun
from raykd.storage.filesystem import Remote
from raykd.storage.store import Store

ANSWER_SECONDS = 120.0  # for a node to start a process
_CALLS = 5  # of which the median is taken
DRIVER = "this machine"


def examine(store: Store, scale: Scale, experiment: Experiment | None = None) -> list[Finding]:
    """Every check of a store, and of the cluster that a run would join.

    With an `experiment`, whose data were read, also whether its caches and its workers fit.
    """
    findings = [installed(), stale()]
    needed = 0 if experiment is None else missing_bytes(experiment, store)
    address = address_to_join(scale)
    if address is None:
        said = f"none runs here; raykd starts one of its own: {DRIVER} alone is looked at"
        return [*findings, Finding("cluster", "ok", said), *here(store, needed)]
    try:
        with connected(scale, lambda text: None):
            return [*findings, *_of_cluster(store, scale, experiment, needed)]
    except (RaykdError, RuntimeError, RayError) as error:  # Ray's own: versions, a node that goes
        said = str(error).strip().splitlines()[0]
        todo = f"{DRIVER} alone was looked at; start the cluster, or correct --address"
        return [*findings, Finding("cluster", "failed", said, todo), *here(store, needed)]


def installed() -> Finding:
    """Whether the dashboard's packages are there, which also serves Ray Train's state."""
    try:
        importlib.import_module("ray.dashboard.optional_deps")
    except ImportError as error:
        todo = "pip install 'ray[default,train,tune]'; runs of Ray Train leak their place without"
        return Finding("ray[default]", "failed", str(error), todo)
    return Finding("ray[default]", "ok", f"ray {ray.__version__} with its dashboard")


def stale() -> Finding:
    """Whether a cluster is noted on this machine that is not there any more."""
    note, address = address_file(), address_to_join(Scale())
    if note.is_file() and address is None:
        said = f"{note} names {note.read_text().strip()}, where nobody answers"
        return Finding("last cluster", "warning", said, f"rm {note}: Ray waits for it otherwise")
    return Finding("last cluster", "ok", "no dead one is noted")


def here(store: Store, needed: int) -> list[Finding]:
    """The checks of this machine alone."""
    with _own_environment():
        facts = {DRIVER: doctor_node.facts()}
    findings = [doctor_rules.versions(facts), doctor_rules.auth(facts), *doctor_rules.limits(facts)]
    with _marks(store) as (place, folder):
        wrong = doctor_node.leave(place, f"{folder}/{DRIVER}", DRIVER)
        views = {DRIVER: wrong or doctor_node.seen(place, folder)}
    return [*findings, doctor_rules.shared(store.shown, DRIVER, views), _room(store, needed)]


def _room(store: Store, needed: int) -> Finding:
    """Of the disk on which this machine has the store, or its copy of it."""
    bound = needed if store.local_bytes is None else min(needed, store.local_bytes)
    root = next(path for path in (store.root, *store.root.parents) if path.is_dir())
    return doctor_rules.room(str(root), shutil.disk_usage(root).free, bound)


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """A region after which the environment is as it was."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _marks(store: Store) -> Iterator[tuple[str, str]]:
    """The store's place and a folder in it for the marks of machines, removed at the end."""
    folder = f"doctor-{secrets.token_hex(4)}"
    made = [path for path in (store.root, *store.root.parents) if not path.exists()]
    if store.mirror is None:
        with contextlib.suppress(OSError):  # whoever writes there will say what is wrong
            (store.root / folder).mkdir(parents=True)
    try:
        yield store.url, folder
    finally:
        if store.mirror is None:
            shutil.rmtree(store.root / folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                for path in made:
                    path.rmdir()
        else:
            with contextlib.suppress(RaykdError):  # it was said already
                remote = Remote(store.url)
                for entry in remote.entries(folder):
                    remote.delete(entry.name)


def _of_cluster(
    store: Store, scale: Scale, experiment: Experiment | None, needed: int
) -> list[Finding]:
    """The checks of a cluster that was joined."""
    nodes = ray.nodes()
    named = _named([each for each in nodes if each["Alive"]])
    findings = [_nodes(named, [each for each in nodes if not each["Alive"]])]
    probes, silent = _probes(named)
    if silent:
        said = "; ".join(f"{name}: {why}" for name, why in silent.items())
        findings.append(Finding("nodes", "failed", said, "look at the logs of these nodes"))
    facts, skews, times = _asked(probes)
    findings += [
        doctor_rules.versions(facts),
        doctor_rules.clocks(skews),
        doctor_rules.answers(times),
    ]
    findings += [doctor_rules.auth(facts), *doctor_rules.limits(facts)]
    views = _views(store, probes)
    findings += [doctor_rules.shared(store.shown, DRIVER, views), _room(store, needed)]
    offered = {name: each["Resources"].get("GPU", 0.0) for name, each in named.items()}
    findings.append(doctor_rules.gpus({name: f["gpus"] for name, f in facts.items()}, offered))
    groups = _groups(scale, experiment)
    fit, grows = fitting(scale), scale.wait_minutes > 0
    findings.append(
        doctor_rules.fits(groups, fit, worker_needs(scale), scale.parallel, grows=grows)
    )
    findings.append(_dashboard(needed=max(groups) > 1))
    return findings


def _groups(scale: Scale, experiment: Experiment | None) -> list[int]:
    """The least workers of whatever trains or computes."""
    asked = [1, scale.workers]
    for run in map(basis, () if experiment is None else experiment.runs):
        assert experiment is not None
        asked.append(experiment.workers(run))
        if isinstance(run.teacher, TeacherRun):
            asked.append(experiment.teacher_workers(run.teacher))
    return [least(workers) for workers in asked]


def _nodes(named: Mapping[str, Any], dead: list[dict[str, Any]]) -> Finding:
    """Which nodes there are, and which there were."""
    said = f"{len(named)} nodes: {', '.join(named)}"
    if not dead:
        return Finding("cluster", "ok", said)
    gone = ", ".join(each["NodeManagerAddress"] for each in dead)
    todo = "look at their logs; a run goes on without them"
    return Finding("cluster", "warning", f"{said}; gone: {gone}", todo)


def _named(alive: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes by names that tell them apart."""
    named: dict[str, dict[str, Any]] = {}
    for each, name in ((each, each["NodeManagerHostname"]) for each in alive):
        named[name if name not in named else f"{name} ({each['NodeID'][:6]})"] = each
    return named


def _probes(named: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """A process on every node, and of the others why there is none."""
    cloudpickle.register_pickle_by_value(doctor_node)
    try:
        kind: Any = ray.remote(num_cpus=0, max_restarts=0)(doctor_node.Probe)
        started = {}
        for name, each in named.items():
            there = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
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


def _asked(
    probes: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """Facts of the driver and of every node; how far off clocks are, and how long calls take."""
    with _own_environment():
        facts = {DRIVER: doctor_node.facts()}
    skews, times = {}, {}
    for name, probe in probes.items():
        told: Any = ray.get(probe.facts.remote())
        facts[name], taken = told, []
        for _ in range(_CALLS):
            before, began = time.time(), time.monotonic()
            there: Any = ray.get(probe.clock.remote())
            after = time.time()
            taken.append(time.monotonic() - began)
            # It was asked between the two: what lies within them is no difference.
            skews[name] = there - after if there > after else min(0.0, there - before)
        times[name] = statistics.median(taken)
    return facts, skews, times


def _views(store: Store, probes: Mapping[str, Any]) -> dict[str, Any]:
    """What every machine sees in the store, once each has left a mark there."""
    with _marks(store) as (place, folder):
        wrong = {DRIVER: doctor_node.leave(place, f"{folder}/{DRIVER}", DRIVER)}
        left = {n: p.leave.remote(place, f"{folder}/{n}", n) for n, p in probes.items()}
        wrong |= {name: ray.get(answer) for name, answer in left.items()}
        found = {name: probe.seen.remote(place, folder) for name, probe in probes.items()}
        views = {DRIVER: doctor_node.seen(place, folder)}
        views |= {name: ray.get(answer) for name, answer in found.items()}
    return {name: wrong[name] or view for name, view in views.items()}


def _dashboard(*, needed: bool) -> Finding:
    """Whether the dashboard answers about state, as Ray Train's clean-up asks it to."""
    from ray.util.state import list_nodes

    try:
        list_nodes(timeout=10, raise_on_missing_output=False)
    except Exception as error:
        said = f"does not answer ({type(error).__name__})"
        todo = "start the head with --include-dashboard=true: Ray Train's runs that are stopped "
        todo += "early keep their processors for ever without it (Ray 2.60)"
        return Finding("dashboard", "failed" if needed else "warning", said, todo)
    return Finding("dashboard", "ok", "answers")
