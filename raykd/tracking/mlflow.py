"""MLflow: one run there per training."""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.recipes import Training
from raykd.storage.store import Store
from raykd.tracking.jsonl import numbers, outcome
from raykd.tracking.logger import NO_LABELS, Labels, Metrics, Tracker, title

EXPERIMENT = "raykd"
DATABASE = "mlflow.db"
FINGERPRINT = "raykd.fingerprint"  # tag by which a resumed training finds its run
_BATCH = 100  # params or tags of a request, at most
_KEY, _VALUE = 250, 6000  # characters of a name, and of a param's value, at most
# MLflow would try for a quarter of an hour to reach a server, and other workers wait meanwhile.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflow(Tracker):
    """Metrics under the names that they have in metrics.jsonl; steps are epochs, from 0.

    A resumed training finds its run by the tag `raykd.fingerprint`; an epoch that is there is not
    sent again. Params are the recipe, by dotted keys; the result's numbers are metrics, with those
    of the best epoch as `best_NAME`, and its texts tags. The tags `raykd.experiment` and
    `raykd.trial` group runs: choose one under "Group by". Characters of a name that MLflow
    refuses become `_`.

    MLflow's own environment variables apply, on every node that trains: MLFLOW_TRACKING_URI
    (default: the SQLite file STORE/mlflow.db, for trainings of one machine; look with `mlflow
    server --backend-store-uri sqlite:///STORE/mlflow.db`), MLFLOW_EXPERIMENT_NAME (default: raykd),
    MLFLOW_TRACKING_TOKEN, MLFLOW_HTTP_REQUEST_TIMEOUT (default here: 20 s) and
    MLFLOW_HTTP_REQUEST_MAX_RETRIES (2).
    """

    package: ClassVar[str] = "mlflow"
    install: ClassVar[str] = "raykd[track]"

    def __init__(self, store: Store, labels: Labels = NO_LABELS) -> None:
        super().__init__(store, labels)
        self._client: Any = None
        self._run_id = ""
        self._sent: set[tuple[str, int]] = set()  # metrics: name and step

    @classmethod
    def check(cls, store: Store) -> None:
        """Raise `ConfigError` where a database would be this node's alone."""
        import mlflow  # takes seconds to import

        if store.node_cache is not None and not mlflow.is_tracking_uri_set():
            raise ConfigError(
                f"mlflow has no database in the remote store {store.shown}; set "
                "MLFLOW_TRACKING_URI to a server"
            )

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Start or find the run, and send the epochs of `history` that it lacks."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        if mlflow.is_tracking_uri_set():
            self._client = mlflow.MlflowClient()
        else:
            self._client = self._client_of_store()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
        found = self._client.search_runs(
            [experiment],
            f"tags.`{FINGERPRINT}` = '{fingerprint(run)}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        if found:
            self._run_id = found[0].info.run_id
            self._sent = {
                (metric.key, metric.step)
                for key in found[0].data.metrics
                for metric in self._client.get_metric_history(self._run_id, key)
            }
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            created = self._client.create_run(
                experiment, tags={FINGERPRINT: fingerprint(run)}, run_name=title(run)
            )
            self._run_id = created.info.run_id
        tags = {"raykd.kind": run.kind, "raykd.experiment": self.labels.experiment}
        if self.labels.trial is not None:
            tags["raykd.trial"] = self.labels.trial
        self._log_texts(params=dict(_leaves(run.plain())), tags=tags)
        for metrics in history:
            self.epoch(run, metrics)

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Send an epoch's numbers."""
        self._log_numbers(numbers(metrics), metrics["epoch"])

    def end(self, run: Training, result: Metrics | None) -> None:
        """Finish the run, as killed where the training stopped early."""
        if not self._run_id:
            return
        if result is not None:
            values = outcome(result)
            self._log_numbers(numbers(values), max(0, result["epochs"] - 1))
            self._log_texts(tags={k: v for k, v in values.items() if isinstance(v, str)})
        self._client.set_terminated(self._run_id, "KILLED" if result is None else "FINISHED")
        self._run_id = ""

    def _client_of_store(self) -> Any:
        """A client of the store's own database, which is made where there is none."""
        import mlflow

        path = self.store.root / DATABASE
        with path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two processes would fail to make tables (3.17)
            # Others may be writing: a request waits for a minute rather than for five seconds.
            return mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}?timeout=60")

    def _experiment(self, name: str) -> str:
        """The id of an experiment of MLflow, made where there is none."""
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another process made it meanwhile, or this raises again
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _log_numbers(self, values: Mapping[str, int | float], step: int) -> None:
        """Send the metrics of a step that the run lacks."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {_name(name): float(value) for name, value in values.items()}
        new = {name: value for name, value in named.items() if (name, step) not in self._sent}
        if new:
            metrics = [Metric(name, value, now, step) for name, value in new.items()]
            self._client.log_batch(self._run_id, metrics=metrics)
            self._sent |= {(name, step) for name in new}

    def _log_texts(
        self, *, params: Mapping[str, str] | None = None, tags: Mapping[str, str]
    ) -> None:
        """Send params and tags, which the run may have already."""
        from mlflow.entities import Param, RunTag

        rows = [Param(_name(name), value[:_VALUE]) for name, value in (params or {}).items()]
        rows += [RunTag(_name(name), value[:_VALUE]) for name, value in tags.items()]
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            self._client.log_batch(
                self._run_id,
                params=[row for row in some if isinstance(row, Param)],
                tags=[row for row in some if isinstance(row, RunTag)],
            )


def _name(name: str) -> str:
    """A name that MLflow takes: a relative path of letters, digits and some signs."""
    parts = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:_KEY]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of plain data as (dotted key, text); one of a list has its position as key."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        yield from _leaves(dict(enumerate(value)), key)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)
