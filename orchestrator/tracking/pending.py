"""Trials that were begun or have ended, as rows on their way to the database: many of them in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.records import Status, TrialResult
from orchestrator.tracking import layout
from orchestrator.tracking.bulk_sql import Bulk, Row
from orchestrator.tracking.metric_block import MetricRow
from orchestrator.tracking.rows import latest_of, observed_rows
from orchestrator.tracking.run_table import OpenRun


@dataclass(kw_only=True, slots=True)
class Begun:
    """New runs."""

    runs: list[Row] = field(default_factory=list)
    tags: list[Row] = field(default_factory=list)
    params: list[Row] = field(default_factory=list)

    def take(self, more: Begun) -> None:
        """These too."""
        self.runs += more.runs
        self.tags += more.tags
        self.params += more.params

    def write(self, bulk: Bulk) -> None:
        """In the transaction that is under way."""
        bulk.new_runs(self.runs)
        bulk.tags(self.tags)
        bulk.new_params(self.params)


@dataclass(kw_only=True, slots=True)
class Concluded:
    """What trials ended as, or are relabelled as: phase, observations and, where they have ended, status."""

    run_ids: list[str] = field(default_factory=list)
    status: dict[str, list[str]] = field(default_factory=dict)
    """Status -> runs that have ended so."""
    tags: list[Row] = field(default_factory=list)
    observed: list[MetricRow] = field(default_factory=list)
    latest: list[MetricRow] = field(default_factory=list)
    """One for each run and metric."""

    def add(self, result: TrialResult, run: OpenRun, thresholds: str, *, ended: bool) -> None:
        """One trial.

        Raises:
            UserError: an observation's name or their number is more than MLflow takes.
        """
        tags = [(key, value, run.run_id) for key, value in layout.result_tags(result, thresholds)]
        observed = observed_rows(run, layout.observed_metrics(result.observations))
        latest = latest_of(run) if ended else []
        known = {row[0] for row in latest}
        self.run_ids.append(run.run_id)
        self.tags += tags if ended else [row for row in tags if row[0] not in layout.KEPT_TAGS]
        self.observed += observed
        self.latest += [*latest, *(row for row in observed if row[0] not in known)]
        if ended:
            self.status.setdefault(Status(result.status).value, []).append(run.run_id)

    def take(self, more: Concluded) -> None:
        """These too: of other trials."""
        self.run_ids += more.run_ids
        for status, runs in more.status.items():
            self.status.setdefault(status, []).extend(runs)
        self.tags += more.tags
        self.observed += more.observed
        self.latest += more.latest

    def write(self, bulk: Bulk, now: int, late: Sequence[MetricRow] = ()) -> None:
        """In the transaction that is under way; `late`: latest metrics of trials that go on."""
        bulk.tags(self.tags)
        bulk.metrics(self.observed)
        bulk.latest([*self.latest, *late])
        for status, runs in self.status.items():
            bulk.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid $in", status, now, runs)
