"""The phase map of a sweep as tables and figures, by the same code as the files that `map` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.job import specs
from orchestrator.errors import UserError, did_you_mean
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.layout import headline, lay_out, summary
from orchestrator.phases.publish import sweep_metrics
from orchestrator.phases.style import PHASE, FigureStyle, drawn_as
from orchestrator.phases.table import TrialTable
from orchestrator.records import Status
from orchestrator.results.frames import Format, in_format, library
from orchestrator.sweep.check_search import unobserved
from orchestrator.sweep.file import valid_values
from orchestrator.sweep.sweep import Sweep
from orchestrator.target import MetricTarget, PhaseTarget
from orchestrator.trial import Trial

if TYPE_CHECKING:
    from orchestrator.phases.draw.png import Output
    from orchestrator.phases.map.surface_map import FittedMap

T = TypeVar("T")
_COUNTS = ("finished", "failed", "missing")


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseMap:
    """The phases over the settings of a sweep; for a search, or with a classifier, the fitted map between them."""

    sweep: Sweep = field(repr=False)
    trials: Sequence[Trial] = field(repr=False)
    table: TrialTable = field(repr=False)
    diagram: PhaseDiagram = field(repr=False)
    metrics: dict[str, float]
    """Numbers about the whole sweep, such as `phase/<label>`: trials with this label."""
    fitted: FittedMap | None = field(repr=False)
    """None where the settings are drawn as they are."""

    @classmethod
    def of(cls, sweep: Sweep, trials: Sequence[Trial], table: TrialTable, *, classifier: bool) -> PhaseMap:
        """The map of a table of trials.

        Args:
            sweep: the sweep.
            trials: all its trials so far, in the order in which they were asked for.
            table: their record.
            classifier: whether the map of a grid is fitted too; that of a search always is.
        """
        kinds: list[Any] = list(dict.fromkeys(type(trial.params) for trial in trials))
        params = {name: spec for kind in kinds for name, spec in specs(kind).items()}
        diagram = phase_diagram(sweep.name, sweep.axes, sweep.job_object().phases, table, params)
        metrics, _ = sweep_metrics(sweep, trials, table, diagram)
        fitted: FittedMap | None = None
        if classifier or sweep.is_search:
            from orchestrator.phases.map.classify import classify

            target = sweep.search.target if sweep.is_search else PhaseTarget()
            order = [trial.id for trial in trials]
            fitted = classify(target, diagram, table, sweep.axes, order, listed=sweep.is_search)
            if not fitted.fitted:
                fitted = None
        return cls(sweep=sweep, trials=trials, table=table, diagram=diagram, metrics=metrics, fitted=fitted)

    def cells(self, *, format: Format = "pandas") -> Any:
        """One row per setting: what its replicates showed.

        Columns: each axis that varies (null where it does not exist); `phase`, the most frequent label (null without
        one); `agreement`, its share of the labelled replicates (float64); `count/<label>` (int64); `finished`, `failed`
        and `missing` replicates (int64); and for each observation `<name>_median` over the replicates, where those that
        did not reach it count as larger than all others (float64, NaN where the median was not reached), and
        `<name>_reached`, the share of the observed replicates that reached it (float64).
        """
        pa = library("pyarrow", what="map().cells()")
        diagram = self.diagram
        columns: dict[str, Any] = {}
        for a, axis in enumerate(diagram.axes):
            columns[axis.name] = pa.array([axis.values[k] for k in diagram.codes[:, a].tolist()])
        labels = [diagram.labels[k] if k >= 0 else None for k in diagram.majority.tolist()]
        columns["phase"] = pa.array(labels, pa.string())
        columns["agreement"] = pa.array(diagram.agreement)
        columns |= {f"count/{label}": pa.array(diagram.counts[:, k]) for k, label in enumerate(diagram.labels)}
        for name, values in zip(_COUNTS, (diagram.labelled, diagram.failed, diagram.missing), strict=True):
            columns[name] = pa.array(values)
        for name, cells in diagram.observations.items():
            observed = cells.reached + cells.not_finite + cells.censored
            share = pa.array((cells.reached + cells.not_finite) / observed.clip(1), mask=observed == 0)
            columns |= {f"{name}_median": pa.array(cells.median), f"{name}_reached": share}
        return in_format(pa.table(columns), format, {"phase": diagram.labels})

    def boundary(self, *, format: Format = "pandas") -> Any:
        """The boundary between phases, or the ridge, as the vertices of lines: the table of `boundary.parquet`.

        Columns: `line` and `vertex` (numbers along the file and the line), `label_a` and `label_b` (the phases on both
        sides; null for a ridge), a column per axis, and for the two axes of the plane also `<axis>_at_5` and
        `<axis>_at_95`, the ends of the 90% band on the normal; `offset_5` and `offset_95`, their signed distances from
        the vertex in widths of the box. Null where the band does not end within the box.

        Raises:
            UserError: the map is not fitted.
        """
        from orchestrator.phases.map.boundary_data import arrow_table, boundary_lines

        return in_format(arrow_table(boundary_lines(self._fitted())), format)

    @property
    def uncertain_area(self) -> float:
        """The share of the map that lies in the 90% band, mean over its slices.

        Raises:
            UserError: the map is not fitted.
        """
        return self._fitted().uncertain_area()

    def _fitted(self) -> FittedMap:
        if self.fitted is None:
            fittable = sum(axis.numeric for axis in self.diagram.axes) >= 2
            rule = "the map of this sweep is not fitted, so it has no boundary"
            step = "use map(classifier=True)" if fittable else "vary two numeric axes together"
            raise UserError(rule, place=self.sweep.name, next_step=step)
        return self.fitted

    @cached_property
    def _drawings(self) -> dict[str, Callable[[Output], None]]:
        """Name of a figure -> draws it."""
        from orchestrator.phases.draw.png_lines import draw_curves
        from orchestrator.phases.draw.png_map import draw_map

        if self.fitted is not None:
            return {"phase_diagram": self._draw_fitted}
        wanted, layout = self.sweep.job_object().headline, lay_out(self.diagram)
        drawings: dict[str, Callable[[Output], None]] = {
            "phase_diagram": partial(draw_map, self.diagram, layout, wanted),
        }
        if layout.lines and headline(wanted, self.diagram.observations):
            name = "phase_diagram" if layout.y is None else "phase_diagram_lines"
            drawings[name] = partial(draw_curves, self.diagram, layout, wanted, self.metrics)
        return drawings

    def _draw_fitted(self, output: Output) -> None:
        from orchestrator.phases.draw.panels import panels_of, ridge_panels
        from orchestrator.phases.draw.png_surface import draw_ridges, draw_surface

        fitted, heading = self._fitted(), summary(self.diagram)
        ridges = ridge_panels(fitted)
        if ridges:
            draw_ridges(self.sweep.name, heading, self._metric, ridges, None, output)
        else:
            draw_surface(self.sweep.name, heading, fitted, panels_of(fitted, self._failed), None, output)

    @property
    def _metric(self) -> str:
        target = self.sweep.search.target
        return target.observation if isinstance(target, MetricTarget) else ""

    @property
    def _failed(self) -> list[int]:
        return [row for row, status in enumerate(self.table.status) if status == Status.FAILED.value]

    @property
    def figures(self) -> tuple[str, ...]:
        """The names that `figure` takes."""
        return tuple(self._drawings)

    def figure(self, name: str = "phase_diagram", **style: Any) -> Any:
        """A `matplotlib.figure.Figure`; `figure.savefig("map.pdf")` writes it.

        Args:
            name: one of `figures`.
            style: keys of the sweep file's `figure:`, which they replace: width ("single", "double" or millimetres),
                labels, colours, panels, decimal.

        Raises:
            UserError: there is no such figure, or no such style.
        """
        library("matplotlib", what="figure()")
        kept: list[Any] = []
        draw = _chosen(name, self._drawings, "figure")
        with drawn_as(self._style(style), self._labels):
            draw(kept.append)
        (made,) = kept
        # A notebook shows the figure although no backend of pyplot is in use.
        made._repr_png_ = partial(_png, made)
        return made

    def plot(self, ax: Any, *, part: int = 0, legend: bool = True, **style: Any) -> Any:
        """Draw the map into a matplotlib `Axes` of your own, in your settings of matplotlib; returns `ax`.

        Args:
            ax: the axes.
            part: which slice, where further axes vary.
            legend: whether `ax` gets a legend of the phases.
            style: keys of the sweep file's `figure:`, which they replace: labels, colours, decimal.

        Raises:
            UserError: there is no such slice, or no such style.
        """
        with drawn_as(self._style(style), self._labels):
            handles = self._plotted(ax, part)
        if legend and handles:
            ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
        return ax

    def _plotted(self, ax: Any, part: int) -> list[Any]:
        """Draw one slice; legend entries of its phases."""
        from orchestrator.phases.draw import png
        from orchestrator.phases.draw.panels import panels_of, ridge_panels
        from orchestrator.phases.draw.png_map import draw_panel
        from orchestrator.phases.draw.png_surface import draw_map_panel, draw_ridge

        if self.fitted is None:
            layout = lay_out(self.diagram)
            panel = _part(part, layout.panels)
            draw_panel(ax, self.diagram, panel, layout)
            return png.phase_swatches(self.diagram) if layout.x is not None else []
        ridges = ridge_panels(self.fitted)
        if ridges:
            draw_ridge(ax, _part(part, ridges), self._metric)
            return []
        shown = _part(part, panels_of(self.fitted, self._failed))
        draw_map_panel(ax, shown)
        return png.class_swatches(self.fitted.labels, shown.plane.raster.label)

    def _style(self, changed: dict[str, Any]) -> FigureStyle:
        from pydantic import ValidationError

        keys = tuple(FigureStyle.model_fields)
        for name in changed:
            if name not in keys:
                step = did_you_mean(name, keys)
                raise UserError("is no key of a figure's style", value=name, choices=keys, next_step=step)
        try:
            style = FigureStyle.model_validate({**self.sweep.figure.model_dump(), **changed})
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise UserError(
                f"'{name}' must be {valid_values(FigureStyle, name)}", value=changed.get(name), next_step="see figure:"
            ) from None
        observed = self.diagram.observations
        for name in style.panels if "panels" in changed and observed else ():
            if mistake := unobserved((name,), self.sweep.job, (PHASE, *observed)):
                raise UserError.of([replace(mistake, place="panels")])
        return style

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.diagram.labels if self.fitted is None or not self.fitted.labels else self.fitted.labels

    @cached_property
    def _page(self) -> dict[str, Any]:
        with drawn_as(self.sweep.figure, self._labels):
            return self._made_page()

    def _made_page(self) -> dict[str, Any]:
        from orchestrator.phases.draw.html import page_of

        before: list[dict[str, Any]] = []
        if self.fitted is not None:
            from orchestrator.phases.draw.html_surface import map_view, ridge_view
            from orchestrator.phases.draw.panels import panels_of, ridge_panels

            ridges = ridge_panels(self.fitted)
            before = [
                ridge_view(ridges, self._metric)
                if ridges
                else map_view(self.fitted, panels_of(self.fitted, self._failed), self.diagram)
            ]
        return page_of(self.diagram, self.table, self.sweep.job_object().headline, self.metrics, before=before)

    @property
    def views(self) -> dict[str, tuple[str, ...]]:
        """The views that `plotly` takes, and the slices of each."""
        return {view["name"]: tuple(part["title"] for part in view["slices"]) for view in self._page["views"]}

    def plotly(self, view: str | None = None, part: str | None = None) -> Any:
        """A `plotly.graph_objects.Figure` of one view of the interactive page.

        Args:
            view: one of `views`; the first by default.
            part: the slice of the view; the first by default.

        Raises:
            UserError: there is no such view or slice.
        """
        objects = library("plotly.graph_objects", what="plotly()")
        views = {each["name"]: each for each in self._page["views"]}
        slices = {each["title"]: each for each in _chosen(view, views, "view")["slices"]}
        chosen = _chosen(part, slices, "slice")
        texts = self._page["texts"]
        traces = []
        for trace in chosen["traces"]:
            meta = trace.get("meta")
            hover = {"text": _texts(texts[meta["texts"]], meta["cells"])} if meta and "text" not in trace else {}
            traces.append({key: value for key, value in trace.items() if key != "meta"} | hover)
        return objects.Figure(data=traces, layout=chosen["layout"])


def _chosen(name: str | None, among: dict[str, Any], what: str) -> Any:
    if name is None:
        return next(iter(among.values()))
    if name not in among:
        step = did_you_mean(name, among)
        raise UserError(f"is no {what} of this map", value=name, choices=tuple(among), next_step=step)
    return among[name]


def _part(part: int, among: Sequence[T]) -> T:
    if not 0 <= part < len(among):
        raise UserError(
            f"must be a whole number from 0 to {len(among) - 1}", place="part", value=part, next_step="part=0"
        )
    return among[part]


def _texts(texts: Sequence[str], cells: Any) -> Any:
    """The texts of cells, nested as they are; "" for -1."""
    if isinstance(cells, (list, tuple)):
        return [_texts(texts, cell) for cell in cells]
    return "" if cells < 0 else texts[cells]


def _png(figure: Any) -> bytes:
    import io

    from orchestrator.phases.draw.png import DPI

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI / 2)
    return buffer.getvalue()
