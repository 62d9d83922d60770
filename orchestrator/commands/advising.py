"""What `plan` says beyond counts: a picture of the grid, the cost, and warnings, each with its source."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.cautions import Caution
from orchestrator.analyses.base import Analysis
from orchestrator.progress import duration

if TYPE_CHECKING:
    from jobs.job import Observations, Params
    from orchestrator.dispatch.capacity import Shape
    from orchestrator.plan.rehearsal import Rehearsal
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.trial import Trial

CHART_POINTS = 320
"""Points of a curve that MLflow's charts ask for (the interface of 3.17.2); of more, they show a sample."""
OF_MEANS = ("peak", "complexity", "threshold")
"""Kinds of analysis whose interval is a percentile bootstrap of a mean over seeds."""
OVER_SEEDS = (*OF_MEANS, "times")
"""Kinds of analysis whose interval comes from the seeds alone, by the bootstrap or by order statistics."""
LEAST_BUDGET = {2: 90, 3: 105, 4: 105}
"""Searched axes -> trials of a slice at which a search has had a map error of 2% (medians, tests/benchmarks/RESULTS.md;
four axes were not measured)."""
LOOKED_AT = 2_000
"""Trials that are looked at, at most."""


def cost_line(price: float, seconds: float, shape: Shape, *, early_s: float | None = None) -> str:
    """What a run of so many seconds costs.

    Args:
        price: per hour of a GPU, or of a CPU core where no GPU is used.
        seconds: the estimate for the run.
        shape: its workers.
        early_s: the estimate if trials end early.
    """
    gpus = shape.device == "cuda"
    unit, per_worker = ("GPU", shape.need.gpus) if gpus else ("CPU", shape.need.cpus)

    def amount(of_s: float, how: str) -> str:
        hours = of_s / 3600 * shape.workers * per_worker
        text = f"{how} {hours * price:.2f}" if hours * price >= 0.005 else "less than 0.01"
        return f"{text} ({hours:.2g} {unit} hours)"

    most = amount(seconds, "about" if early_s is None else "at most")
    early = "" if early_s is None else f"; {amount(early_s, 'about')} if trials end early"
    units = f"{shape.workers * per_worker:g} {unit}{'s' * (shape.workers * per_worker != 1)}"
    return f"cost      {most}{early}, at {price:g} per {unit} hour, {units} for {duration(seconds)}"


def cautions(
    sweep: Sweep, trials: Sequence[Trial], finished: Mapping[str, Observations], rehearsal: Rehearsal | None = None
) -> list[Caution]:
    """What is likely to go wrong with a sweep.

    Args:
        sweep: The sweep.
        trials: Its trials, those that have finished among them; of a search, a sample of those that are to run.
        finished: Trial id -> observations of (some) finished ones.
        rehearsal: What short trainings have shown.
    """
    job, thresholds = sweep.job_object(), sweep.thresholds()
    settings: dict[int, tuple[Params, Observations | None]] = {}
    for trial in trials[:: max(1, math.ceil(len(trials) / LOOKED_AT))]:  # replicates share their parameters
        settings.setdefault(id(trial.params), (trial.params, finished.get(trial.id)))
    some = list(settings.values())
    found = list(job.cautions(some, thresholds))
    found += few_replicates(sweep.written.analysis or (), sweep.replicates)
    reported = [job.report_steps(params) for params, _ in some]
    if rehearsal is not None:
        reported += [metric.values for _, facts in rehearsal.trials for metric in facts.metrics.values()]
    found += many_points(max(reported, default=0))
    if sweep.is_search:
        axes = max((len(part.coordinates) for part in sweep.slices), default=0)
        found += small_budget(sweep.most_trials, axes=axes, slices=len(sweep.slices), grid=sweep.grid_size)
    return found


def few_replicates(analyses: Iterable[Analysis], replicates: int) -> list[Caution]:
    """Analyses of the sweep file whose interval needs more replicates."""
    found = []
    for analysis in analyses:
        if analysis.kind_name not in OVER_SEEDS:
            continue
        halves = 2 if getattr(analysis, "tune", None) else 1  # one half of the seeds chooses, the other is compared
        needed = math.ceil(1 + math.log2(1 / (1 - analysis.level)) - 1e-9)
        if replicates // halves >= needed:
            continue
        if analysis.kind_name in OF_MEANS:
            found.append(_few_for_mean(analysis, replicates, needed))
        else:
            have = (
                f"{replicates} replicates, of which a half is compared," if halves > 1 else f"{replicates} replicates"
            )
            found.append(
                Caution(
                    what=f"{have} are too few for the {analysis.level:.0%} interval of '{analysis.label}'",
                    source="the range of n seeds holds their median with probability 1 - 2^(1-n): "
                    f"{1 - 2.0 ** (1 - replicates // halves):.0%} for {replicates // halves}",
                    next_step=f"replicates: {needed * halves}, or a lower 'level' of the analysis",
                )
            )
    return found


def _few_for_mean(analysis: Analysis, replicates: int, needed: int) -> Caution:
    """The bootstrap has the normal quantile for that of t, and a standard error with n for n - 1."""
    from scipy.stats import norm, t

    def coverage(n: int) -> str:
        quantile = norm.ppf((1 + analysis.level) / 2) * math.sqrt((n - 1) / n)
        return f"{2 * t.cdf(quantile, n - 1) - 1 if n > 1 else 0:.0%}"

    have = f"{replicates} replicates" if replicates != 1 else "1 replicate"
    return Caution(
        what=f"{have} are too few for the {analysis.level:.0%} interval of '{analysis.label}'",
        source="a bootstrap interval of a mean is too narrow for few seeds: of normal values, it holds the mean with "
        f"probability {coverage(replicates)} for {replicates}",
        next_step=f"replicates: {needed} or more ({coverage(needed)} for {needed}, "
        f"{coverage(2 * needed)} for {2 * needed})",
    )


def many_points(points: int) -> list[Caution]:
    """Curves with more points than MLflow's charts show."""
    if points <= CHART_POINTS:
        return []
    return [
        Caution(
            what=f"curves have up to {points:,} points, and MLflow's charts show a sample of {CHART_POINTS} of them",
            source=f"MLflow's interface asks for {CHART_POINTS} points of a curve (3.17.2); the record, maps and "
            "exports have all",
            next_step=f"report at most {CHART_POINTS} times (curve_points), or leave it if the charts need no detail",
        )
    ]


def small_budget(budget: int, *, axes: int, slices: int, grid: int | None) -> list[Caution]:
    """A search with so few trials that a grid is likely to be as good."""
    least = LEAST_BUDGET.get(axes, 0) * max(1, slices)
    if budget >= least or (grid is not None and grid <= budget):
        return []
    where = f"{axes} axes" + (f" in {slices} slices" if slices > 1 else "")
    return [
        Caution(
            what=f"a budget of {budget} trials is small for a search over {where}: a grid may be as good",
            source=f"to a map error of 2%, searches took {LEAST_BUDGET[2]} trials for two axes and {LEAST_BUDGET[3]} "
            "for three (medians on problems with a known boundary, tests/benchmarks/RESULTS.md)",
            next_step=f"search.budget: {least} or more, fewer axes, or 'kind: grid'",
        )
    ]


def caution_lines(found: Collection[Caution]) -> list[str]:
    """Warnings as text."""
    return [f"warning: {each.what}\n  source: {each.source}\n  next:  {each.next_step}" for each in found]
