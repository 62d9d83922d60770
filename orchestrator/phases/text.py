"""Names and numbers as text, and the colours of labels."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import TypeGuard

from jobs.job import ParamSpec, Scalar
from orchestrator.phases.style import look

PALETTE = (
    *("#4477AA", "#EEBB33", "#CC4455", "#66CCEE", "#332288", "#88CCAA"),
    *("#882255", "#DDCC77", "#999933", "#44AA99", "#EE8866", "#661100"),
)
"""Colours by label index, distinct for colour-blind readers too; fixed, so that a phase keeps its colour."""
NOT_REACHED = "#D0D0D0"
"""Colour of values that were not reached."""
LINE_STYLES = (("#222222", "-", "o"), ("#8A8A8A", "--", "s"), ("#9C5A1A", "-.", "D"), ("#5B2A86", ":", "v"))
"""Colour, dash and marker of observations drawn as lines; no phase has one of these colours."""
MARKER_DASHES = ("--", ":", "-.", (0, (1, 3)))
MARKER_PLOTLY_DASHES = ("dash", "dot", "dashdot", "longdash")
INK, SOFT = "#222222", "#777777"


def label_colour(index: int) -> str:
    """The colour of the label at `index` of the map's labels: that of the style, else of the palette, which repeats.

    Where the style gives a colour of the palette to one phase, the phase that had it takes a free one.
    """
    chosen = look().palette
    if index in chosen:
        return chosen[index]
    taken = {colour.upper() for colour in chosen.values()}
    colour = PALETTE[index % len(PALETTE)]
    free = [each for each in reversed(PALETTE) if each not in taken]
    if colour not in taken or not free:
        return colour
    before = sum(k not in chosen and PALETTE[k % len(PALETTE)] in taken for k in range(index))
    return free[before % len(free)]


def rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue of `#RRGGBB`, from 0 to 1."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def tinted(colour: str, strength: float) -> str:
    """`#RRGGBB` mixed with white; `strength` 1 leaves it as it is."""
    return "#" + "".join(f"{round(255 * (1 - (1 - part) * strength)):02X}" for part in rgb(colour))


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a parameter's value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value: float) -> str:
    """A number with at most four significant digits, as a power of ten where it is very large or small."""
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
    """A fraction as a percentage with two significant digits."""
    return f"{float(f'{100 * share:.2g}'):g}%"


def words(name: str) -> str:
    """The name of a parameter or observation with spaces for underscores."""
    return name.replace("_", " ")


def named(name: str, otherwise: str | None = None) -> str:
    """What a figure calls an axis, observation or phase: as the style says, else `otherwise` or its words."""
    return look().style.labels.get(name, words(name) if otherwise is None else otherwise)


def value_text(value: Scalar | None) -> str:
    """A parameter's value as text; None: it does not exist there."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else number(value)


def place_text(values: Mapping[str, Scalar | None]) -> str:
    """Where a slice is: the values of the axes that it fixes, with the names of the style."""
    return ", ".join(f"{named(name)} {value_text(value)}" for name, value in values.items())


def _letter(name: str) -> str:
    """The Greek letter of a LaTeX command without its backslash; other commands as they are."""
    case = "SMALL" if name.islower() else "CAPITAL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
    except KeyError:
        return name


def on_page(label: str) -> str:
    """A label with formulas as HTML, which shows Greek letters, subscripts and superscripts."""

    def plain(formula: re.Match[str]) -> str:
        inner = re.sub(r"_(\{[^{}]*\}|\w)", lambda m: f"<sub>{m[1].strip('{}')}</sub>", formula[1])
        inner = re.sub(r"\^(\{[^{}]*\}|\w)", lambda m: f"<sup>{m[1].strip('{}')}</sup>", inner)
        inner = re.sub(r"\\([A-Za-z]+)", lambda m: _letter(m[1]), inner)
        return inner.replace("{", "").replace("}", "").replace("\\", "")

    return re.sub(r"\$([^$]+)\$", plain, label)


def plain(label: str) -> str:
    """A label with formulas as text, with Greek letters and without subscripts."""
    return re.sub(r"\$[^$]+\$", lambda formula: re.sub("</?su[bp]>", "", on_page(formula[0])), label)


def localised(text: str) -> str:
    """The text of a tick with the style's decimal separator."""
    return text.replace(".", ",") if look().style.decimal == "comma" else text


def axis_label(name: str, specs: Mapping[str, ParamSpec]) -> str:
    """The name of an axis in words, with its unit if it has one."""
    unit = specs[name].unit if name in specs else ""
    return f"{words(name)} ({unit})" if unit else words(name)


def plural(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
