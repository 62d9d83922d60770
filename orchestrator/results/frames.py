"""Tables in the form that the user asks for, and optional libraries."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from orchestrator.errors import UserError, did_you_mean

Format = Literal["pandas", "arrow", "polars"]
"""pandas: NumPy dtypes, where null and NaN are both NaN. arrow, polars: null is not NaN."""
FORMATS: tuple[str, ...] = get_args(Format)


def library(name: str, *, what: str) -> Any:
    """Import an optional library.

    Args:
        name: the module.
        what: what needs it, as the subject of a sentence.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        package = name.partition(".")[0]
        step = f"pip install {package}, or pip install 'phasefront[notebook]'"
        raise UserError(f"{what} needs the library {package}, which is not installed", next_step=step) from error


def check_format(given: str) -> None:
    """Check the name of a format.

    Raises:
        UserError: there is no such format.
    """
    if given not in FORMATS:
        step = did_you_mean(given, FORMATS)
        raise UserError("is no format of a table", place="format", value=given, choices=FORMATS, next_step=step)


def in_format(table: Any, given: str, categories: Mapping[str, Sequence[str]] | None = None) -> Any:
    """A `pyarrow.Table` as a pandas or polars data frame, or as it is.

    Args:
        table: the table.
        given: one of FORMATS.
        categories: column -> its possible texts in order; such a column is categorical in pandas.

    Raises:
        UserError: there is no such format, or its library is not installed.
    """
    check_format(given)
    if given == "arrow":
        return table
    if given == "polars":
        return library("polars", what="format='polars'").from_arrow(table)
    pandas = library("pandas", what="format='pandas'")
    frame = table.to_pandas(self_destruct=False)
    for name, texts in (categories or {}).items():
        others = sorted(set(frame[name].dropna().unique()) - set(texts))
        frame[name] = frame[name].astype(pandas.CategoricalDtype([*texts, *others]))
    return frame
