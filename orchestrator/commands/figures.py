"""Further figures that `map` draws from the record: the step as an axis."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.job import specs
from orchestrator.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from orchestrator.phases.diagram import PhaseDiagram
    from orchestrator.phases.publish_steps import Figures
    from orchestrator.phases.table import TrialTable
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import Tracker
    from orchestrator.trial import Trial


def check_figures(sweep: Sweep, arguments: argparse.Namespace) -> None:
    """Whether the figures can be drawn, as far as the sweep alone can tell.

    Raises:
        UserError: they cannot.
    """
    names = [axis.name for axis in sweep.axes]
    if arguments.along is not None and arguments.along not in names:
        step = did_you_mean(arguments.along, names)
        raise UserError(
            "must be an axis of the sweep", place="--along", value=arguments.along, choices=names, next_step=step
        )
    if arguments.step and sweep.is_search:
        raise UserError(
            "needs a grid: the settings of a search are scattered",
            place="--step",
            value=arguments.step[0],
            next_step="run a grid over the same axes; finished trials are not run again",
        )


def draw_figures(
    sweep: Sweep, trials: Sequence[Trial], tracker: Tracker, arguments: argparse.Namespace
) -> list[Figures]:
    """Draw what the options ask for, and keep the files with the parent run.

    Raises:
        UserError: a name is unknown.
    """
    if not arguments.step:
        return []
    from orchestrator.phases.diagram import phase_diagram
    from orchestrator.phases.steps import MOST_CELLS
    from orchestrator.phases.table import collect

    rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials])}
    table = collect(trials, rows, sweep.job_object())
    kinds = dict.fromkeys(type(trial.params) for trial in trials)
    params = {name: spec for kind in kinds for name, spec in specs(kind).items()}
    phases = sweep.job_object().phases
    diagram = phase_diagram(sweep.name, sweep.axes, phases, table, params, most_cells=MOST_CELLS)
    figures = _steps(sweep, diagram, table, tracker, arguments)
    tracker.attach(figures.files)
    return [figures]


def _steps(
    sweep: Sweep, diagram: PhaseDiagram, table: TrialTable, tracker: Tracker, arguments: argparse.Namespace
) -> Figures:
    from orchestrator.phases.publish_steps import publish_steps, step_axis_of
    from orchestrator.phases.steps import NoSuchMetric, read_step_map

    x = _along(diagram, arguments.along) if arguments.along is not None else step_axis_of(diagram)
    if x is None:
        raise UserError("needs an axis with more than one value", place="--step", value=arguments.step[0])
    try:
        step_map = read_step_map(diagram, table, dict.fromkeys(arguments.step), tracker.curves, x=x)
    except NoSuchMetric as error:
        raise UserError(
            "must be a metric that the trials have recorded",
            place="--step",
            value=error.metric,
            choices=error.choices,
            next_step=did_you_mean(error.metric, error.choices),
        ) from error
    return publish_steps(step_map, sweep.output)


def _along(diagram: PhaseDiagram, name: str) -> int:
    """Index of the axis of this name, or of the one that represents it where axes are zipped."""
    for a, axis in enumerate(diagram.axes):
        if name == axis.name or name in diagram.partners.get(axis.name, ()):
            return a
    raise UserError(
        "must be an axis with more than one value",
        place="--along",
        value=name,
        choices=[axis.name for axis in diagram.axes],
    )
