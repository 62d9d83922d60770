"""The `search:` section of a sweep file against its axes: what is searched, where, and when it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jobs.job import Scalar
from orchestrator.axes import Axis, Cycle, TooManyTrials
from orchestrator.errors import nearest
from orchestrator.search.space import MOST_COORDINATES, Slice, SpaceError, slices_of
from orchestrator.sweep.document import Document
from orchestrator.sweep.file import SearchKeys, target_kind

INTERIOR = 64
"""Settings of the inside of every slice that are shown to the job before anything runs."""
_PLASTIC = 1.32471795724474602596
"""Root of x^3 = x + 1: its powers fill a box evenly (M. Roberts, "The unreasonable effectiveness of quasirandom
sequences", 2018)."""


def check_search(
    document: Document, axes: Sequence[Axis], fixed: Mapping[str, Scalar], defaults: Mapping[str, Scalar]
) -> tuple[Slice, ...]:
    """The slices of a boundary search; none, with the mistakes noted, where it cannot be searched, or for a grid."""
    if document.get(("search", "kind")) != "boundary":
        _unused(document)
        return ()
    if not {"budget", "until"} & {k for k, v in document.data["search"].items() if v is not None}:
        document.add(
            ("search",),
            "a boundary search says when it ends: 'budget' or 'until' is missing",
            key=True,
            next_step="add 'budget: 400', or 'until: {uncertain_area: 0.01}'",
        )
    _check_storage(document)
    if document.wrong_under(("axes",)) or document.wrong_under(("zip",)):
        return ()
    try:
        slices = slices_of(axes, fixed, defaults)
    except SpaceError as error:
        document.add(("axes", error.axis), error.rule, key=True, next_step=error.next_step)
        return ()
    except (Cycle, TooManyTrials):
        return ()  # said of the combinations
    _check_slices(document, slices, axes)
    return slices


def _unused(document: Document) -> None:
    """A budget for a grid is surely meant for a search."""
    section = document.get(("search",))
    written = [name for name in section if name != "kind"] if isinstance(section, dict) else []
    if written and not document.wrong_under(("search",)):
        document.add(
            ("search", written[0]),
            f"'{written[0]}' is for a boundary search, and this is a grid",
            key=True,
            choices=tuple(SearchKeys.model_fields),
            next_step="add 'kind: boundary' under 'search:'",
        )


def _check_storage(document: Document) -> None:
    storage = document.get(("search", "storage"))
    uri = document.get(("tracking", "uri"))
    if isinstance(storage, str) and isinstance(uri, str) and _plain(storage) == _plain(uri):
        document.add(
            ("search", "storage"),
            "the study needs a database of its own: MLflow and Optuna name tables alike",
            value=storage,
            next_step="name another file or database",
        )


def _plain(uri: str) -> str:
    scheme, _, rest = uri.removeprefix("phasefront-").partition("://")
    return f"{scheme.partition('+')[0].replace('postgresql', 'postgres')}://{rest}"


def _check_slices(document: Document, slices: Sequence[Slice], axes: Sequence[Axis]) -> None:
    ranges = tuple(axis.name for axis in axes if axis.scale != "values")
    target = document.get(("search", "target"))
    is_ridge = target_kind(target) == "ridge" and isinstance(target, dict)
    fewest = 2 if is_ridge else 1
    for one in slices:
        count = len(one.coordinates)
        if fewest <= count <= MOST_COORDINATES:
            continue
        where = "".join(f" where {name} is {one.fixed[name]}" for name in one.fixed if name in {a.name for a in axes})
        rule = f"a boundary search has {fewest} to {MOST_COORDINATES} axes with a scale; it has {count}{where}"
        next_step = "give an axis a scale: a list of values is searched slice by slice"
        if count > MOST_COORDINATES:
            next_step = "zip axes (zip:), or list a few values of one"
        document.add(("axes",) if "axes" in document.data else ("search",), rule, key=True, next_step=next_step)
        break
    along = target.get("along") if is_ridge else None
    if isinstance(along, str) and slices and any(one.axis_index(along) is None for one in slices):
        near = nearest(along, ranges)
        document.add(
            ("search", "target", "along"),
            f"'{along}' is no axis with a scale everywhere in this sweep",
            value=along,
            choices=ranges,
            next_step=f"did you mean '{near}'?" if near else "name one of the axes",
        )
    budget = document.get(("search", "budget"))
    if isinstance(budget, int) and budget < len(slices) and not document.wrong_under(("search", "budget")):
        document.add(
            ("search", "budget"),
            f"there are {len(slices)} slices to search: fewer trials tell nothing of some",
            value=budget,
            next_step="raise the budget, or list fewer values",
        )


def interior(slices: Sequence[Slice], count: int = INTERIOR) -> Iterator[dict[str, Scalar]]:
    """Settings spread evenly over every slice; the corners are those of the grid of the axes' ends."""
    for one in slices:
        d = len(one.coordinates)
        steps = np.array([_PLASTIC ** -(k + 1) for k in range(d)])
        x = one.snap((0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0)
        yield from (one.setting(row) for row in x)


def spread(slices: Sequence[Slice], count: int) -> Iterator[dict[str, Scalar]]:
    """`count` settings that stand for those of a search, the slices in turn."""
    each = -(-count // max(1, len(slices)))
    turns = zip(*(interior([one], each) for one in slices), strict=True)
    yield from itertools.islice(itertools.chain.from_iterable(turns), count)
