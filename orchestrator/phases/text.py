"""Names and numbers as people read them, and the colours of the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jobs.job import ParamSpec

PALETTE = (
    "#4477AA",
    "#EEBB33",
    "#CC4455",
    "#66CCEE",
    "#332288",
    "#88CCAA",
    "#882255",
    "#DDCC77",
    "#999933",
    "#44AA99",
    "#EE8866",
    "#661100",
)
"""Colours by label index, chosen to differ for colour-blind readers too; fixed, so that a phase keeps its colour."""
NOT_REACHED = "#D0D0D0"
"""The colour of what was not reached."""
LINE_STYLES = (("#222222", "-", "o"), ("#8A8A8A", "--", "s"), ("#9C5A1A", "-.", "D"), ("#5B2A86", ":", "v"))
"""Colour, dash and marker of observations drawn as lines: none of them is a phase's colour."""
MARKER_DASHES = ("--", ":", "-.", (0, (1, 3)))
MARKER_PLOTLY_DASHES = ("dash", "dot", "dashdot", "longdash")
INK, SOFT = "#222222", "#777777"


def label_colour(index: int) -> str:
    """The colour of the label at `index` in the diagram's labels (they repeat after the palette's end)."""
    return PALETTE[index % len(PALETTE)]


def number(value: float) -> str:
    """A number in at most four digits where that is exact enough to tell it."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if isinstance(value, int) or float(value).is_integer():
        if abs(value) < 100_000:
            return str(int(value))
    elif 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if mantissa == "1" else f"{mantissa}×10{power}"


def percent(share: float) -> str:
    """A share of one in per cent, two digits of it."""
    return f"{float(f'{100 * share:.2g}'):g}%"


def words(name: str) -> str:
    """A parameter's or observation's name in words."""
    return name.replace("_", " ")


def axis_label(name: str, specs: Mapping[str, ParamSpec]) -> str:
    """An axis's name in words, with its unit where it has one."""
    unit = specs[name].unit if name in specs else ""
    return f"{words(name)} ({unit})" if unit else words(name)


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
