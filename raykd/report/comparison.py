"""Comparison of a report's students, seed by seed: what its numbers allow one to conclude.

Two lines are told apart where the 95 % t interval of their differences, over the seeds that both
have, does not contain 0.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from raykd.report.types import Drawn, Group, Report, Summary, heading_of

_NAMED = 3  # lines that the sentence names; the others are counted
_UNSHARED = "no two lines share two seeds"


def summarise(values: Iterable[float]) -> Summary | None:
    """Mean, sample standard deviation and t interval; None of nothing."""
    array = np.array([*values], float)
    n, mean = len(array), float(array.mean()) if len(array) else 0.0
    if n < 2:
        return Summary(n, mean, None, None, None) if n else None
    std = float(array.std(ddof=1))
    half = _t(n) * std / n**0.5
    return Summary(n, mean, std, mean - half, mean + half)


@functools.cache
def _t(n: int) -> float:
    """Half of a 95 % t interval over n values, in standard errors."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    return float(stdtrit(n - 1, 0.975))


def difference(one: Group, other: Group, metric: str) -> Summary | None:
    """The difference of two lines in the metric, over the seeds that both have; None without."""
    mine, theirs = _by_seed(one, metric), _by_seed(other, metric)
    return summarise(value - theirs[seed] for seed, value in mine.items() if seed in theirs)


def _by_seed(group: Group, metric: str) -> dict[int, float]:
    """The metric after the last epoch of each finished run whose numbers are finite."""
    last = {run.seed: run.result["last"] for run in group.runs if run.result and run.is_finite()}
    return {seed: values[metric] for seed, values in last.items() if metric in values}


@dataclass(frozen=True)
class Standing:
    """The lines that are told apart from one line."""

    above: tuple[Group, ...]  # better ones
    below: tuple[Group, ...]
    open: tuple[Group, ...]  # groups that are not told apart from it

    @property
    def places(self) -> list[int]:
        """The best and the worst place that it may have."""
        return [1 + len(self.above), 1 + len(self.above) + len(self.open)]

    @property
    def rank(self) -> str:
        """Its place, as "2", or "2-4" where intervals leave several; "" where they leave all."""
        first, last = self.places
        if self.open and not (self.above or self.below):
            return ""
        return str(first) if first == last else f"{first}-{last}"


def standings(report: Report) -> list[tuple[Group, Standing]]:
    """The lines that have a rank, best mean first, each with its standing among them."""
    groups = [group for group in report.ranked() if group.score and group.is_ranked()]
    signs = {
        (i, j): _sign(difference(one, other, report.metric))
        for i, one in enumerate(groups)
        for j, other in enumerate(groups[:i])
    }
    table = []
    for i, group in enumerate(groups):
        by_sign: dict[int, list[Group]] = {-1: [], 0: [], 1: []}
        for j, other in enumerate(groups):
            if i != j:
                by_sign[signs[i, j] if j < i else -signs[j, i]].append(other)
        above, open_, below = (tuple(by_sign[sign]) for sign in (-1, 0, 1))
        table.append((group, Standing(above, below, open_)))
    return table


def _sign(gap: Summary | None) -> int:
    """1 or -1 for a difference whose interval lies above or below 0; 0 where it contains 0."""
    if gap is None or gap.low is None or gap.high is None:
        return 0
    return (gap.low > 0) - (gap.high < 0)


def conclusion(report: Report) -> str:
    """One sentence: what the numbers so far allow one to conclude."""
    table = standings(report)
    waiting = len(report.students) - len(table)
    if not table:
        return "Nothing can be concluded yet: no line of students is finished."
    so_far = f"; {waiting} more are not finished" if waiting else ""
    (best, standing), others = table[0], table[1:]
    name, measure = report.called(best), report.measure
    score = f"{measure} {best.score.mean:.2f} %" if best.score else measure
    if not others:
        return f"{name} has {score}, and there is nothing to compare it with{so_far}."
    gaps = [difference(best, group, report.metric) for group, _ in others]
    counts = [gap.n for gap in gaps if gap is not None and gap.low is not None]
    if not counts:
        if report.drawn is not None:
            return _of_search(report, report.drawn)
        single = all(len(_by_seed(group, report.metric)) < 2 for group, _ in table)
        return (
            f"Nothing can be told apart: {'each line has one seed' if single else _UNSHARED}; the "
            f"highest of {len(table)} is {name} with {score}, and run.seed: [0, 1, 2] in the grid "
            f"shows what seeds change{so_far}."
        )
    few, many = min(counts), max(counts)
    how = f"95 % intervals of the differences seed by seed, n = {few}{f' to {many}' * (many > few)}"
    if not any(one.above or one.below for _, one in table):
        return f"Nothing can be told apart ({how}); the highest is {name} with {score}{so_far}."
    if not standing.below:
        verdict = f"No line is told apart from the highest, {name} ({score})"
    elif not standing.open:
        verdict = f"{name} is the best of {len(table)} ({score})"
    else:
        below, rest = _listed(report, standing.below), _listed(report, standing.open)
        verdict = f"{name} ({score}) is above {below}, and not told apart from {rest}"
    verdict += _over_baseline(report, table)
    return f"{verdict}{so_far} ({how})."


def _of_search(report: Report, drawn: Drawn) -> str:
    """The conclusion from trials of one seed each, of which one was chosen."""
    by_name = {run.fingerprint: group for group in report.students for run in group.runs}
    trials = [t for t in report.trials if t.fingerprint in drawn.best and t.state == "finished"]
    values = [trial.value for trial in trials if trial.value is not None]
    if not values:
        return "Nothing can be concluded yet: no trial is finished."
    chosen = min(values) if drawn.mode == "min" else max(values)
    best = [by_name[str(trial.fingerprint)] for trial in trials if trial.value == chosen]
    states = [trial.state for trial in report.trials]
    counts = [
        f"{states.count(state)} {words}"
        for state, words in (("stopped", "stopped early"), ("failed", "failed"))
        if state in states
    ]
    scores = ", ".join(f"{group.score.mean:.2f}" for group in best if group.score)
    others = f"; {' and '.join(counts)}" if counts else ""
    return (
        f"Nothing can be told apart: each trial has one seed; the best of {len(states)} by "
        f"{heading_of(drawn.metric)} is {_listed(report, best)} with {chosen:.2f} "
        f"({report.measure} on the test images: {scores} %){others}; run it with several seeds to "
        "compare it."
    )


def _over_baseline(report: Report, table: Sequence[tuple[Group, Standing]]) -> str:
    """The lines whose gain over the baseline is told apart from 0, as the end of a sentence."""
    gains = [(group, group.gain) for group, _ in table if group.gain and group.gain.low is not None]
    if not gains:
        return ""
    over = report.baseline or "label_only"
    better = [(group, gain) for group, gain in gains if _sign(gain) > 0]
    worse = [group for group, gain in gains if _sign(gain) < 0]
    if not better and not worse:
        return f"; no line is told apart from {over}"
    texts = []
    if better:
        shown = [
            f"{report.called(group)} {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
            for group, gain in better
        ]
        texts.append(f"over {over}: {_few(shown)}")
    if worse:
        texts.append(
            f"below it: {_listed(report, worse)}"
            if better
            else f"below {over}: {_listed(report, worse)}"
        )
    return f"; {'; '.join(texts)}"


def _listed(report: Report, groups: Sequence[Group]) -> str:
    return _few([report.called(group) for group in groups])


def _few(names: Sequence[str]) -> str:
    """The first names of a list, and a count of the others."""
    shown, more = list(names[:_NAMED]), len(names) - _NAMED
    if more > 0:
        shown.append(f"{more} more")
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]
