"""A scaling law fitted to an observation along an axis, with censored observations in the likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag

from orchestrator.analyses.base import Analysis, Needs
from orchestrator.axes import key
from orchestrator.phases.text import plural

if TYPE_CHECKING:
    from orchestrator.analyses.result import Cell, Line, Panel, Result
    from orchestrator.analyses.source import Floats, Group, Source
    from orchestrator.analysis.estimate import Booleans
    from orchestrator.analysis.fits import Fit
    from orchestrator.analysis.laws import Law

Form = Literal["power", "floor", "critical", "broken"]
Forms = Annotated[
    Annotated[Form, Tag("one")] | Annotated[list[Form], Tag("several"), Field(min_length=1)],
    Discriminator(lambda written: "several" if isinstance(written, list) else "one"),
]
"""One form or several, as the file writes them."""


class LawAnalysis(Analysis):
    """Parameters of a law with intervals; see `orchestrator.analysis.fits`."""

    kind_name: ClassVar[str] = "law"

    kind: Literal["law"] = key(..., "A scaling law of an observation along an axis.", "law")
    of: str = key(..., "What follows the law.", "an observation such as generalisation_step", min_length=1)
    along: str = key(..., "The quantity that it depends on.", "the name of an axis with numbers", min_length=1)
    form: Forms = key(
        "power",
        "power: a x^-b; floor: a x^-b + c; critical: a (x - x_c)^-nu; broken: a power law with one break. Several are "
        "fitted to the same trials and compared by AICc.",
        "one of power, floor, critical, broken; or a list of them",
    )

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms that are fitted."""
        return tuple(dict.fromkeys([self.form] if isinstance(self.form, str) else self.form))

    @property
    def default_name(self) -> str:
        """The forms, what follows them, and the axis."""
        return f"law_{'-'.join(self.forms)}_{self.of}_{self.along}"

    @property
    def needs(self) -> Needs:
        """An observation along an axis."""
        return Needs(axes=(("along", self.along),), observations=(("of", self.of),))

    def _laws(self) -> dict[Form, Law]:
        from orchestrator.analysis.laws import BROKEN_POWER, CRITICAL, POWER, POWER_WITH_FLOOR

        known: dict[Form, Law] = {
            "power": POWER,
            "floor": POWER_WITH_FLOOR,
            "critical": CRITICAL,
            "broken": BROKEN_POWER,
        }
        return {form: known[form] for form in self.forms}

    def compute(self, source: Source) -> Result:
        """A row for each setting of the other axes, and of several forms for each form."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.view import MOST_PANELS, axis_label, spread

        laws = self._laws()
        several = len(laws) > 1
        groups = source.groups(self.along)
        drawn = spread(len(groups), MOST_PANELS)
        rows: list[dict[str, Cell]] = []
        panels: list[Panel] = []
        left_out = 0
        for g, group in enumerate(groups):
            own, panel = self._rows(source, group, laws)
            rows += own
            left_out += int(str(own[0]["left_out"]))
            if g in drawn:
                panels.append(panel)
        parameters = tuple(dict.fromkeys(name for law in laws.values() for name in law.parameters))
        notes = ["residuals are those of the logarithm; replicates are resampled as a whole"]
        if several:
            notes.append("difference: AICc minus the smallest; weight: exp(-difference / 2) as a share of all forms'")
        if left_out:
            notes.append(f"{left_out} trials were left out: a value or an axis that is not positive, or no observation")
        banded = any(line.low is not None for panel in panels for line in panel.lines)
        formulas = "; ".join(law.formula for law in laws.values())
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"{formulas} for y = {self.of}, x = {self.along}",
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            parts=("form",) if several else (),
            main=(
                *(("form",) if several else ()),
                *("trials", "not_reached", "fit", *parameters, "scale"),
                *(("aicc", "difference", "weight") if several else ()),
            ),
            estimates=parameters,
            level=self.level,
            notes=tuple(notes),
            figure=Figure(
                x_label=axis_label(source, self.along),
                y_label=self.of.replace("_", " "),
                x_log=True,
                y_log=True,
                band=f"{self.level:.0%} interval of the law" if banded else "",
                panels=tuple(panels),
            ),
        )

    def _rows(self, source: Source, group: Group, laws: Mapping[Form, Law]) -> tuple[Sequence[dict[str, Cell]], Panel]:
        from orchestrator.analyses.result import Line, Panel
        from orchestrator.analysis.fits import compare, fit, observations

        above, to = source.bounds(group, self.of)
        x = source.amounts(group, self.along)
        usable = ~np.isnan(above) & (x > 0) & (above >= 0) & (to > 0) & ((above > 0) | np.isfinite(to))
        x, above, to = x[usable], above[usable], to[usable]
        replicate = source.table.replicate[group.rows[usable]]
        units = replicate if len(np.unique(replicate)) > 1 else None
        reached = np.isfinite(to)
        points = Line(x=x[reached], y=to[reached], label=f"{int(reached.sum())} trials", points=True)
        several = len(laws) > 1
        shared: dict[str, Cell] = {"trials": len(x), "left_out": int((~usable).sum())}
        shared |= {"not_reached": int((~reached).sum()), "scale": math.nan, "aicc": math.nan}
        shared |= dict.fromkeys(name for law in laws.values() for name in law.parameters)
        rows: dict[Form, dict[str, Cell]] = {}
        fits: dict[Form, Fit] = {}
        for form, law in laws.items():
            row = {**group.setting, **({"form": form} if several else {}), **shared}
            row |= {"difference": math.nan, "weight": math.nan} if several else {}
            if absent := self._absent(reached):
                row["fit"] = f"none: {absent}"
                rows[form] = row
                continue
            try:
                found = fit(law, observations(x, above=above, to=to), units=units, level=self.level)
            except (ValueError, RuntimeError) as error:
                row["fit"] = f"none: {error}"
            else:
                fits[form] = found
                row |= {
                    "fit": _fitted(found, int(reached.sum())),
                    **found.parameters,
                    "scale": found.scale,
                    "aicc": found.aicc,
                }
            rows[form] = row
        compared = {each.law: each for each in compare(list(fits.values()))} if several and fits else {}
        for form, found in fits.items():
            if (own := compared.get(found.law.name)) is not None:
                rows[form] |= {"difference": own.difference, "weight": own.weight}
        best = next(iter(compared), None)
        lines = [
            _line(found, x[reached], x, to[reached], band=not several, best=found.law.name == best)
            for found in fits.values()
        ]
        return list(rows.values()), Panel(title=group.called, lines=(points, *lines))

    def _absent(self, reached: Booleans) -> str:
        """Why these trials have no law of any form; "" if they may have one."""
        if not len(reached):
            return f"no trial has a positive {self.of} at a positive {self.along}"
        return "" if reached.any() else f"none of {plural(len(reached), 'trial')} reached {self.of}"


def _fitted(found: Fit, events: int) -> str:
    """That there is a fit, and why it has no interval where it has none."""
    if not math.isnan(found.percentile_level):
        return "yes"
    of = f"{plural(events, 'event')} for {len(found.law.parameters)} parameters and the scale"
    return f"yes, no interval: too few events, {of}"


def _line(found: Fit, reached: Floats, x: Floats, y: Floats, *, band: bool, best: bool) -> Line:
    """The fitted law from the first x that reached the event to the last x."""
    from orchestrator.analyses.result import Line

    at = np.geomspace(reached.min(), x.max(), 100)
    value, low, high = found.predict(at)
    shown = np.isfinite(value) & (value < 1e3 * y.max())
    bounds = {"low": low[shown], "high": high[shown]} if band and not np.isnan(low).any() else {}
    label = found.law.formula if band else found.law.name + (", smallest AICc" if best else "")
    return Line(x=at[shown], y=value[shown], label=label, **bounds)
