"""The report of a sweep: the students that it asked for, and its trials."""

from raykd.config.experiment import Experiment
from raykd.core.record import fingerprint
from raykd.report.gather import gather
from raykd.report.types import Report, Trial
from raykd.storage.store import Store
from raykd.training.route_results import route_found
from raykd.training.sweep_sheets import Sheet, asked_by


def gather_sweep(store: Store, experiment: Experiment, baseline: str | None = None) -> Report:
    """The report of a resolved experiment, with what its sweep has drawn and tried, if it did.

    Raises what `gather` does.
    """
    whole, sheets = asked_by(experiment, store)
    return gather(store, whole, [_trial(store, sheet) for sheet in sheets], baseline)


def _trial(store: Store, sheet: Sheet) -> Trial:
    student = None if sheet.asked is None else route_found(store, sheet.asked)
    name = None if student is None else fingerprint(student)
    return Trial(sheet.trial, sheet.config, name, sheet.state, sheet.error, sheet.seconds)
