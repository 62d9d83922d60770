"""MLflow's REST API: the few requests that a tracker needs, over several connections."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.outages import Unreachable, WrongAddress, is_wrong_address
from orchestrator.printable import printable
from orchestrator.records import Status
from orchestrator.secrets import hide
from orchestrator.tracking.address import quiet_mlflow, shown
from orchestrator.tracking.metric_block import MetricRow
from orchestrator.tracking.run_table import OpenRun, chunked

CONNECTIONS = 8
METRICS_A_REQUEST = 1000
ENTITIES_A_REQUEST = 100
"""MLflow's limit on params and on tags."""
BYTES_A_REQUEST = 900_000
"""MLflow's limit is 1 MB, of which a part is not metrics."""
RUNS_A_PAGE = 5000
RUNS_BY_ID = 500
HISTORY_RUNS = 100
HISTORY_ROWS = 25_000
"""MLflow's limits for one request of the histories of several runs."""

_ROW_BYTES = 120
"""Size of a metric in a request, without its name."""
_NAME_BYTES = 6
"""Largest size of one character of a name in JSON."""
_LONGEST_REASON = 300
"""Characters of what a server says."""
_UNAUTHORISED, _FORBIDDEN = 401, 403
_CAUSE = re.compile(r"Caused by (.*)\)$", re.DOTALL)
"""What urllib3 says about a request that failed."""

T = TypeVar("T")
R = TypeVar("R")


class ServerError(RuntimeError):
    """The MLflow server refused a request."""

    def __init__(self, endpoint: str, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(f"MLflow server, {endpoint}: {status} {code}: {message}")


@dataclass(frozen=True, slots=True)
class ServerRun:
    """A run as the server returns it."""

    run_id: str
    status: str
    start_time: int
    end_time: int
    """0 if it has not ended."""
    tags: dict[str, str]
    newest: dict[str, tuple[int, int]]
    """Metric -> (timestamp, step) of its latest row."""

    @classmethod
    def parse(cls, run: Mapping[str, Any]) -> ServerRun:
        """From the JSON of MLflow's REST API."""
        info, data = run["info"], run.get("data", {})
        return cls(
            run_id=info["run_id"],
            status=info["status"],
            start_time=int(info.get("start_time", 0)),
            end_time=int(info.get("end_time") or 0),
            tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", ())},
            newest={m["key"]: (int(m["timestamp"]), int(m.get("step", 0))) for m in data.get("metrics", ())},
        )

    @property
    def curves(self) -> dict[str, int]:
        """Metric -> last recorded step, of its metrics that are curves."""
        return {name: step for name, (timestamp, step) in self.newest.items() if timestamp >= self.start_time}

    @property
    def through_step(self) -> int:
        """The last recorded step of its curves; -1 if there is none."""
        return max(self.curves.values(), default=-1)

    def opened(self) -> OpenRun:
        """As the writer knows it."""
        return OpenRun(self.run_id, self.status, self.start_time, self.through_step)


class MlflowApi:
    """One MLflow server. `each` sends several requests at a time."""

    def __init__(self, uri: str, *, place: str) -> None:
        self._uri, self._place = uri.rstrip("/"), place
        self._pool: ThreadPoolExecutor | None = None
        self._credentials: Any = None
        self.before_write: Callable[[], None] | None = None
        """Called before each request that writes; raises if nothing may be written (see `HeldTag`)."""

    def connect(self) -> None:
        """Import mlflow and check that the server's port is open (MLflow itself would retry for minutes).

        Raises:
            Unreachable: It is not.
            WrongAddress: The address is none.
        """
        if self._pool is not None:
            return
        parts = urlsplit(self._uri)
        try:
            host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
            if not host:
                raise ValueError("the address has no host")
            socket.create_connection((host, port), timeout=10).close()
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from None
        quiet_mlflow("mlflow.utils.rest_utils", "mlflow.utils.credentials")
        from mlflow.utils.credentials import get_default_host_creds

        self._credentials = get_default_host_creds(self._uri)
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="mlflow-http")

    def each(self, do: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Call `do` for every item, several at a time; return the results in order.

        The first error, if any, is raised when all calls have ended.
        """
        self.connect()
        assert self._pool is not None  # connect made it
        futures = [self._pool.submit(do, item) for item in items]
        wait(futures)
        return [future.result() for future in futures]

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST to `/api/2.0/mlflow/<path>`."""
        if self.before_write is not None and not path.endswith("/search"):
            self.before_write()
        return self._call("POST", f"/api/2.0/mlflow/{path}", json=body)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """GET from `/api/2.0/mlflow/<path>`."""
        return self._call("GET", f"/api/2.0/mlflow/{path}", params=params)

    def _call(self, method: str, endpoint: str, **content: Any) -> dict[str, Any]:
        """One request. It is not repeated here: `orchestrator.outages` decides, and says what it waits for."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.rest_utils import http_request

        try:
            response = http_request(
                self._credentials, endpoint, method, raise_on_status=False, max_retries=0, **content
            )
        except MlflowException as error:
            raise self._unreachable(error) from error
        try:
            answer = json.loads(response.text) if response.text.strip() else {}
        except ValueError:
            answer = {}
            if response.status_code == 200:
                raise self._no_mlflow() from None
        if response.status_code in (_UNAUTHORISED, _FORBIDDEN):
            raise self._denied(response.status_code, answer, response.text)
        if response.status_code != 200:
            code = answer.get("error_code", "")
            raise ServerError(endpoint, response.status_code, code, answer.get("message", hide(response.text)[:500]))
        if not isinstance(answer, dict):
            raise self._no_mlflow()
        return answer

    def _denied(self, status: int, answer: object, text: str) -> WrongAddress:
        """The server answers 401 or 403; what it says tells a wrong password from a missing permission or a proxy."""
        said = str(answer["message"]) if isinstance(answer, dict) and "message" in answer else text
        said = printable(" ".join(re.sub(r"<[^>]*>", " ", said).split()), longest=_LONGEST_REASON)
        next_step = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        if self._credentials.token:
            next_step = "the server refuses MLFLOW_TRACKING_TOKEN, which is set: renew it"
        elif self._credentials.username or urlsplit(self._uri).username:
            next_step = (
                "the server refuses this user and password: correct MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or what ~/.mlflow/credentials or the address has"
            )
        if "host header" in said.casefold():
            host = urlsplit(self._uri).hostname
            next_step = f"start the server with this name: mlflow server --allowed-hosts '{host},{host}:*'"
        elif status == _FORBIDDEN:
            next_step = "ask for a permission of this user for the experiment, or use another user or experiment"
        return WrongAddress(
            f"the MLflow server denied access ({status})" + (f": {said}" if said else ""),
            place=self._place,
            value=shown(self._uri),
            next_step=next_step,
        )

    def _unreachable(self, error: Exception) -> Unreachable | WrongAddress:
        said = _CAUSE.search(str(error))
        rule = f"the MLflow server cannot be reached: {said[1] if said else error}"
        if isinstance(error, ValueError) or is_wrong_address(error):
            return self._wrong(rule)
        return Unreachable(rule, next_step="check that it runs (`mlflow server`), and its host and port")

    def _no_mlflow(self) -> WrongAddress:
        return self._wrong("the server at this address is not an MLflow server")

    def _wrong(self, rule: str) -> WrongAddress:
        step = (
            "check the address; or start a server: mlflow server --backend-store-uri phasefront-sqlite:///mlflow.db; "
            "or record to a file: sqlite:///mlflow.db"
        )
        return WrongAddress(rule, place=self._place, value=shown(self._uri), next_step=step)

    def experiment(self, name: str) -> dict[str, Any] | None:
        """The experiment of this name, or None."""
        self.connect()
        try:
            experiment: dict[str, Any] = self.get("experiments/get-by-name", experiment_name=name)["experiment"]
        except ServerError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            if error.status == 404:
                raise self._no_mlflow() from error
            raise
        return experiment

    def experiment_tags(self, experiment_id: str) -> dict[str, str]:
        """The tags of an experiment."""
        experiment = self.get("experiments/get", experiment_id=experiment_id)["experiment"]
        return {tag["key"]: tag.get("value", "") for tag in experiment.get("tags", ())}

    def tag_experiment(self, experiment_id: str, key: str, value: str) -> None:
        """Set a tag of an experiment; `before_write` is not called."""
        body = {"experiment_id": experiment_id, "key": key, "value": value}
        self._call("POST", "/api/2.0/mlflow/experiments/set-experiment-tag", json=body)

    def update(self, run_id: str, status: Status, end_time: int | None = None) -> None:
        """Set the status of a run and, unless it is None, its end time."""
        end = {} if end_time is None else {"end_time": end_time}
        self.post("runs/update", {"run_id": run_id, "status": status.value, **end})

    def log(
        self,
        run_id: str,
        *,
        metrics: Sequence[MetricRow] = (),
        params: Sequence[tuple[str, str]] = (),
        tags: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Log at most 1,000 metrics and any number of params and tags to one run."""
        parts = [chunked(({"key": k, "value": v} for k, v in pairs), ENTITIES_A_REQUEST) for pairs in (params, tags)]
        rows = [
            {"key": key, "value": "NaN" if is_nan else value, "timestamp": timestamp, "step": step}
            for key, value, timestamp, step, is_nan, _ in metrics
        ]
        requests: list[dict[str, Any]] = [
            {"params": of_params, "tags": of_tags} for of_params, of_tags in zip_longest(*parts, fillvalue=[])
        ]
        if len(rows) > METRICS_A_REQUEST - 2 * ENTITIES_A_REQUEST or not requests:
            requests.append({"metrics": rows})
        else:
            requests[0]["metrics"] = rows
        for request in requests:
            self.post("runs/log-batch", {"run_id": run_id, **request})

    def log_rows(self, run_id: str, rows: Sequence[MetricRow]) -> None:
        """Log any number of metric rows to one run, whole steps in one request, up to MLflow's limits."""
        longest_name = max((len(row[0]) for row in rows), default=0)
        at_most = min(METRICS_A_REQUEST, BYTES_A_REQUEST // (_ROW_BYTES + _NAME_BYTES * longest_name))
        for batch in whole_steps(rows, at_most):
            self.log(run_id, metrics=batch)

    def search(self, experiment_id: str, condition: str, page: int = RUNS_A_PAGE) -> Iterator[ServerRun]:
        """The active runs that meet a condition, read page by page."""
        token: str | None = ""
        while token is not None:
            runs, token = self.page(experiment_id, condition, token, page)
            yield from runs

    def page(
        self, experiment_id: str, condition: str, token: str, size: int = RUNS_A_PAGE
    ) -> tuple[list[ServerRun], str | None]:
        """One page of the active runs that meet a condition, and the token of the next page; None after the last.

        Args:
            experiment_id: The experiment.
            condition: MLflow's filter; empty for all runs.
            token: Of the page; empty for the first.
            size: The most runs of a page.
        """
        body: dict[str, Any] = {
            "experiment_ids": [experiment_id],
            "filter": condition,
            "max_results": size,
            "order_by": ["attributes.start_time ASC"],
            **({"page_token": token} if token else {}),
        }
        answer = self.post("runs/search", body)
        return [ServerRun.parse(run) for run in answer.get("runs", ())], answer.get("next_page_token") or None

    def runs(self, experiment_id: str, run_ids: Sequence[str]) -> dict[str, ServerRun]:
        """These runs, without those that the user has deleted."""

        def some(ids: list[str]) -> list[ServerRun]:
            listed = ", ".join(f"'{run}'" for run in ids)
            return list(self.search(experiment_id, f"attributes.run_id IN ({listed})"))

        return {run.run_id: run for part in self.each(some, chunked(run_ids, RUNS_BY_ID)) for run in part}

    def histories(self, run_ids: Sequence[str], metric: str) -> list[dict[str, Any]]:
        """All rows of a metric of at most HISTORY_RUNS runs, each with its `run_id`."""
        answer = self._call(
            "GET",
            "/ajax-api/2.0/mlflow/metrics/get-history-bulk",
            params={"run_id": list(run_ids), "metric_key": metric, "max_results": HISTORY_ROWS},
        )
        rows: list[dict[str, Any]] = answer.get("metrics", [])
        if len(rows) < HISTORY_ROWS:
            return rows
        if len(run_ids) > 1:
            middle = len(run_ids) // 2
            return self.histories(run_ids[:middle], metric) + self.histories(run_ids[middle:], metric)
        return list(self._history(run_ids[0], metric))

    def _history(self, run_id: str, metric: str) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            answer = self.get(
                "metrics/get-history", run_id=run_id, metric_key=metric, max_results=HISTORY_ROWS, **token
            )
            for row in answer.get("metrics", ()):
                yield {**row, "run_id": run_id}
            if not answer.get("next_page_token"):
                return
            token = {"page_token": answer["next_page_token"]}

    def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


def whole_steps(rows: Sequence[MetricRow], at_most: int) -> Iterator[list[MetricRow]]:
    """The rows of one run in batches of at most `at_most`, in step order; a step is never split between batches.

    The exception is a step with more than `at_most` metrics, which is split into batches of its own.
    """
    batch: list[MetricRow] = []
    by_step: dict[int, list[MetricRow]] = {}
    for row in rows:
        by_step.setdefault(row[3], []).append(row)
    for step in sorted(by_step):
        if batch and len(batch) + len(by_step[step]) > at_most:
            yield batch
            batch = []
        batch += by_step[step]
        while len(batch) > at_most:
            yield batch[:at_most]
            batch = batch[at_most:]
    if batch:
        yield batch
