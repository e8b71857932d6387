"""What the facts about a cluster and a store mean, a line each: pure, without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "failed"]
Facts = Mapping[str, Any]  # of `node.facts`

SKEW_SECONDS = 3.0  # between two clocks: checkpoints and notes are compared by their times
SLOW_SECONDS = 0.1  # of a call on a node and its answer
OPEN_FILES = 65536  # what Ray asks for; a driver with many workers runs out of 1024
SHM_BYTES = 2 << 30  # below which Ray's objects are likely to go to a disk
LITTLE_BYTES, LEAST_BYTES = 10 << 30, 1 << 30  # free, to warn and to fail
STRICT = ("raykd", "torch", "ray", "python")  # of other packages a difference is a warning


@dataclass(frozen=True)
class Finding:
    """One check, and how it ended."""

    check: str
    status: Status
    said: str
    todo: str = ""  # where it is not ok


def versions(nodes: Mapping[str, Facts]) -> Finding:
    """Whether all machines run the same code; the first is the driver's."""
    driver, found = next(iter(nodes)), {name: facts["versions"] for name, facts in nodes.items()}
    expected = found[driver]
    lines, worst = [], False
    for name, own in found.items():
        for package, version in own.items():
            if version != expected.get(package):
                lines.append(f"{name} has {package} {version}, {driver} {expected.get(package)}")
                worst |= package in STRICT
    if not lines:
        said = ", ".join(f"{package} {version}" for package, version in expected.items())
        return Finding("versions", "ok", said)
    todo = "install the same versions on every machine, as from one image or one constraints file"
    return Finding("versions", "failed" if worst else "warning", "; ".join(lines), todo)


def clocks(skews: Mapping[str, float]) -> Finding:
    """Whether clocks agree: seconds that each is off the driver's, travel left out."""
    far = {name: skew for name, skew in skews.items() if abs(skew) > SKEW_SECONDS}
    if far:
        said = ", ".join(f"{name} is off by {skew:+.1f} s" for name, skew in far.items())
        return Finding("clocks", "failed", said, "let chrony or ntpd set the clocks")
    most = max((abs(skew) for skew in skews.values()), default=0.0)
    return Finding("clocks", "ok", f"{len(skews)} nodes, {most:.1f} s apart at most")


def answers(seconds: Mapping[str, float]) -> Finding:
    """How long a call on a node takes, the answer included."""
    said = ", ".join(f"{name} {1000 * each:.1f} ms" for name, each in seconds.items())
    slow = [name for name, each in seconds.items() if each > SLOW_SECONDS]
    if slow:
        todo = f"look at the network to {', '.join(slow)}, or at who else works there"
        return Finding("time to nodes", "warning", said, todo)
    return Finding("time to nodes", "ok", said)


def shared(place: str, driver: str, views: Mapping[str, Mapping[str, str] | str]) -> Finding:
    """Whether every machine has written into the store and sees what all others wrote.

    `views` are the marks that each found, by who left them, or what went wrong there.
    """
    wrong = [f"{name}: {view}" for name, view in views.items() if isinstance(view, str)]
    for name, view in views.items():
        if not isinstance(view, str):
            unseen = [other for other in views if other not in view]
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
    """Whether a disk has room, for `needed` bytes where that is known."""
    said = f"{what}: {free / 1e9:.1f} GB free"
    if needed:
        said += f", caches to make take {needed / 1e9:.2f} GB"
    if needed > free or free < LEAST_BYTES:
        return Finding("room", "failed", said, "make room, or choose another disk")
    if free - needed < LITTLE_BYTES:
        return Finding("room", "warning", said, "make room: logs and checkpoints come on top")
    return Finding("room", "ok", said)


def limits(nodes: Mapping[str, Facts]) -> list[Finding]:
    """Shared memory, open files and temporary files of machines."""
    findings = []
    small = {
        name: facts["shm_bytes"]
        for name, facts in nodes.items()
        if facts["shm_bytes"] is not None and facts["shm_bytes"] < SHM_BYTES
    }
    said = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in small.items())
    todo = "containers: --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm"
    findings.append(_each("/dev/shm", said, todo, f"{SHM_BYTES >> 30} GiB or more"))
    few = {n: f["open_files"] for n, f in nodes.items() if 0 <= f["open_files"] < OPEN_FILES}
    said = ", ".join(f"{name} {count}" for name, count in few.items())
    todo = f"ulimit -n {OPEN_FILES} before `ray start`"
    findings.append(_each("open files", said, todo, f"{OPEN_FILES} or more"))
    full = {n: f["temp_free"] for n, f in nodes.items() if f["temp_free"] < LITTLE_BYTES}
    said = ", ".join(f"{name} {free / 1e9:.1f} GB" for name, free in full.items())
    todo = "make room for Ray's sessions, or set RAY_TMPDIR"
    findings.append(_each("temporary files", said, todo, f"{LITTLE_BYTES >> 30} GiB or more free"))
    return findings


def _each(check: str, said: str, todo: str, good: str) -> Finding:
    """A warning with what some machines lack, or ok."""
    return Finding(check, "warning", said, todo) if said else Finding(check, "ok", good)


def auth(nodes: Mapping[str, Facts]) -> Finding:
    """Whether all machines ask for a token, or none does, and whether it is there."""
    modes = {name: facts["auth_mode"] for name, facts in nodes.items()}
    lacking = [n for n, facts in nodes.items() if modes[n] == "token" and not facts["token"]]
    if len(set(modes.values())) > 1:
        said = ", ".join(f"{name} {mode or 'unset'}" for name, mode in modes.items())
        todo = "set RAY_AUTH_MODE to the same on every machine before `ray start`"
        return Finding("authentication", "failed", f"RAY_AUTH_MODE: {said}", todo)
    if lacking:
        todo = "`ray get-auth-token --generate`, and the same ~/.ray/auth_token on every machine"
        return Finding("authentication", "failed", f"no token on {', '.join(lacking)}", todo)
    mode = next(iter(modes.values()))
    if mode == "token":
        said = "a token, on every machine: whoever has it can run code there"
        return Finding("authentication", "ok", said)
    token = any(facts["token"] for facts in nodes.values())
    if len(nodes) == 1 and (mode == "disabled" or not token):
        said = "a cluster that raykd starts here asks for a token that its user alone can read"
        if mode == "disabled":
            said = "RAY_AUTH_MODE=disabled: none, on this machine alone; whoever has an account on "
            said += "it can run code in a cluster that raykd starts, as the user of this command"
        return Finding("authentication", "ok", said)
    if mode == "disabled":
        todo = "RAY_AUTH_MODE=token, unless nobody else can reach the network of the nodes"
        return Finding("authentication", "warning", "none: whoever reaches a node runs code", todo)
    said = "RAY_AUTH_MODE is not set"
    if token:
        said += ", and a token lies there: `ray start` asks for it, clients send none"
    todo = "set RAY_AUTH_MODE=token (or disabled) wherever Ray or raykd is started"
    return Finding("authentication", "warning", said, todo)


def gpus(seen: Mapping[str, int | None], offered: Mapping[str, float]) -> Finding:
    """Whether the GPUs that Ray offers on each node are those that torch sees there."""
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
    """Whether groups of so many workers each, and `parallel` single ones, fit the cluster.

    `fit` is how many workers of this `scale` do; `grows`: whether a run waits for nodes to come.
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
