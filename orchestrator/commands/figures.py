"""Further figures that `map` draws from the record: the step as an axis, one quantity against another, more data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.job import specs
from orchestrator.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from orchestrator.phases.against import Quantity
    from orchestrator.phases.diagram import PhaseDiagram
    from orchestrator.phases.publish_steps import Figures
    from orchestrator.phases.table import TrialTable
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import Tracker
    from orchestrator.trial import Trial


SAMPLE_AXES = ("sample_count", "pool", "data_fraction")
"""Parameters that are a number of samples, or proportional to it."""


def check_figures(sweep: Sweep, arguments: argparse.Namespace) -> None:
    """Whether the figures can be drawn, as far as the sweep alone can tell.

    Raises:
        UserError: they cannot.
    """
    _pairs(arguments)
    names = [axis.name for axis in sweep.axes]
    if arguments.along is not None and arguments.along not in names:
        step = did_you_mean(arguments.along, names)
        raise UserError(
            "must be an axis of the sweep", place="--along", value=arguments.along, choices=names, next_step=step
        )
    for place, given in (("--step", arguments.step), ("--more-data", arguments.more_data)):
        if not (given and sweep.is_search):
            continue
        raise UserError(
            "needs a grid: the settings of a search are scattered",
            place=place,
            value=given[0],
            next_step="run a grid over the same axes; finished trials are not run again",
        )


def is_further(arguments: argparse.Namespace) -> bool:
    """Whether the options ask for figures besides the phase diagram."""
    return bool(arguments.step or arguments.against or arguments.more_data)


def draw_figures(
    sweep: Sweep, trials: Sequence[Trial], tracker: Tracker, arguments: argparse.Namespace
) -> list[Figures]:
    """Draw what the options ask for, and keep the files with the parent run.

    Raises:
        UserError: a name is unknown.
    """
    if not is_further(arguments):
        return []
    pairs = _pairs(arguments)
    from orchestrator.phases.diagram import phase_diagram
    from orchestrator.phases.steps import MOST_CELLS
    from orchestrator.phases.table import collect

    rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials], settings=False)}
    table = collect(trials, rows, sweep.job_object())
    kinds = dict.fromkeys(type(trial.params) for trial in trials)
    params = {name: spec for kind in kinds for name, spec in specs(kind).items()}
    phases = sweep.job_object().phases
    figures = []
    if arguments.step:
        joined = phase_diagram(sweep.name, sweep.axes, phases, table, params, most_cells=MOST_CELLS)
        figures.append(_steps(sweep, joined, table, tracker, arguments))
    if pairs or arguments.more_data:
        diagram = phase_diagram(sweep.name, sweep.axes, phases, table, params)
        figures += [_against(sweep, diagram, table, tracker, **pair, kinds=arguments.figures) for pair in pairs]
        figures += [_more_data(sweep, diagram, table, tracker, name, arguments) for name in arguments.more_data]
    for figure in figures:
        tracker.attach(figure.files)
    return figures


def _pairs(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """The names of x and y of each `--against`."""
    pairs = []
    for given in arguments.against:
        pair = dict(text.partition("=")[::2] for text in given)
        if set(pair) != {"x", "y"} or not all(pair.values()):
            raise UserError(
                "must be x=NAME y=NAME",
                place="--against",
                value=" ".join(given),
                next_step="--against x=parameters_per_label y=final_test_error",
            )
        pairs.append(pair)
    return pairs


def _quantity(name: str, place: str, diagram: PhaseDiagram, table: TrialTable, tracker: Tracker) -> Quantity:
    from orchestrator.phases.against import NoSuchQuantity, quantity_of

    try:
        return quantity_of(name, diagram, table, tracker.curves)
    except NoSuchQuantity as error:
        final = f"final_{error.name}"
        step = f"did you mean '{final}'?" if final in error.choices else did_you_mean(error.name, error.choices)
        raise UserError(error.rule, place=place, value=error.name, choices=error.choices, next_step=step) from error


def _against(
    sweep: Sweep,
    diagram: PhaseDiagram,
    table: TrialTable,
    tracker: Tracker,
    *,
    x: str,
    y: str,
    kinds: Sequence[str],
) -> Figures:
    from orchestrator.phases.against import against
    from orchestrator.phases.publish_steps import publish_points

    quantities = [_quantity(name, "--against", diagram, table, tracker) for name in (x, y)]
    return publish_points(against(diagram, table, *quantities), sweep.output, kinds)


def _more_data(
    sweep: Sweep,
    diagram: PhaseDiagram,
    table: TrialTable,
    tracker: Tracker,
    name: str,
    arguments: argparse.Namespace,
) -> Figures:
    from orchestrator.phases.more_data import doubling_figure
    from orchestrator.phases.publish_steps import publish_points

    names = [axis.name for axis in diagram.axes]
    samples = next((known for known in SAMPLE_AXES if known in names), None)
    if arguments.along is None and samples is None:
        raise UserError(
            "needs an axis that counts samples",
            place="--more-data",
            value=name,
            choices=names,
            next_step="name it with --along" if names else "",
        )
    x = _along(diagram, arguments.along if arguments.along is not None else str(samples))
    if not diagram.axes[x].numeric:
        raise UserError("must be an axis of numbers", place="--along", value=diagram.axes[x].name)
    y = _quantity(name, "--more-data", diagram, table, tracker)
    return publish_points(doubling_figure(diagram, table, y, x), sweep.output, arguments.figures)


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
    return publish_steps(step_map, sweep.output, arguments.figures)


def _along(diagram: PhaseDiagram, name: str) -> int:
    """Index of the axis of this name, or of the one that represents it where axes are zipped."""
    if (x := diagram.represented(name)) is not None:
        return x
    raise UserError(
        "must be an axis with more than one value",
        place="--along",
        value=name,
        choices=[axis.name for axis in diagram.axes],
    )
