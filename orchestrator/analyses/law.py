"""A scaling law fitted to an observation along an axis, with censored observations in the likelihood."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import Analysis, Needs
from orchestrator.axes import key

if TYPE_CHECKING:
    from orchestrator.analyses.result import Cell, Panel, Result
    from orchestrator.analyses.source import Group, Source
    from orchestrator.analysis.laws import Law


class LawAnalysis(Analysis):
    """Parameters of a law with intervals; see `orchestrator.analysis.fits`."""

    kind_name: ClassVar[str] = "law"

    kind: Literal["law"] = key(..., "A scaling law of an observation along an axis.", "law")
    of: str = key(..., "What follows the law.", "an observation such as generalisation_step", min_length=1)
    along: str = key(..., "The quantity that it depends on.", "the name of an axis with numbers", min_length=1)
    form: Literal["power", "floor", "critical", "broken"] = key(
        "power",
        "power: a x^-b; floor: a x^-b + c; critical: a (x - x_c)^-nu; broken: a power law with one break.",
        "one of power, floor, critical, broken",
    )

    @property
    def default_name(self) -> str:
        """The form, what follows it, and the axis."""
        return f"law_{self.form}_{self.of}_{self.along}"

    @property
    def needs(self) -> Needs:
        """An observation along an axis."""
        return Needs(axes=(("along", self.along),), observations=(("of", self.of),))

    def _law(self) -> Law:
        from orchestrator.analysis.laws import BROKEN_POWER, CRITICAL, POWER, POWER_WITH_FLOOR

        return {"power": POWER, "floor": POWER_WITH_FLOOR, "critical": CRITICAL, "broken": BROKEN_POWER}[self.form]

    def compute(self, source: Source) -> Result:
        """A row for each setting of the other axes."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.view import MOST_PANELS, axis_label, spread

        law = self._law()
        groups = source.groups(self.along)
        drawn = spread(len(groups), MOST_PANELS)
        rows: list[dict[str, Cell]] = []
        panels: list[Panel] = []
        for g, group in enumerate(groups):
            row, panel = self._row(source, group, law)
            rows.append(row)
            if g in drawn:
                panels.append(panel)
        left_out = sum(int(str(row["left_out"])) for row in rows)
        notes = ["residuals are those of the logarithm; replicates are resampled as a whole"]
        if left_out:
            notes.append(f"{left_out} trials were left out: a value or an axis that is not positive, or no observation")
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"{law.formula} for y = {self.of}, x = {self.along}",
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            main=("trials", "not_reached", "fit", *law.parameters, "scale"),
            estimates=law.parameters,
            level=self.level,
            notes=tuple(notes),
            figure=Figure(
                x_label=axis_label(source, self.along),
                y_label=self.of.replace("_", " "),
                x_log=True,
                y_log=True,
                band=f"{self.level:.0%} interval of the law",
                panels=tuple(panels),
            ),
        )

    def _row(self, source: Source, group: Group, law: Law) -> tuple[dict[str, Cell], Panel]:
        from orchestrator.analyses.result import Line, Panel
        from orchestrator.analysis.fits import fit, observations

        above, to = source.bounds(group, self.of)
        x = source.amounts(group, self.along)
        usable = ~np.isnan(above) & (x > 0) & (above >= 0) & (to > 0) & ((above > 0) | np.isfinite(to))
        x, above, to = x[usable], above[usable], to[usable]
        replicate = source.table.replicate[group.rows[usable]]
        row: dict[str, Cell] = {**group.setting, "trials": len(x), "left_out": int((~usable).sum())}
        row |= {"not_reached": int(np.isinf(to).sum()), **dict.fromkeys(law.parameters)}
        row |= {"scale": math.nan, "aicc": math.nan}
        reached = np.isfinite(to)
        points = Line(x=x[reached], y=to[reached], label=f"{int(reached.sum())} trials", points=True)
        try:
            data = observations(x, above=above, to=to)
            found = fit(law, data, units=replicate if len(np.unique(replicate)) > 1 else None, level=self.level)
        except (ValueError, RuntimeError) as error:
            row["fit"] = f"none: {error}"
            return row, Panel(title=group.title, lines=(points,))
        row |= {"fit": "yes", **found.parameters, "scale": found.scale, "aicc": found.aicc}
        at = np.geomspace(x[reached].min(), x.max(), 100)
        value, low, high = found.predict(at)
        shown = np.isfinite(value) & (value < 1e3 * to[reached].max())
        line = Line(x=at[shown], y=value[shown], label=law.formula, low=low[shown], high=high[shown])
        return row, Panel(title=group.title, lines=(points, line))
