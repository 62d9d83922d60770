"""Helpers that compare the curves of a packed trial with the curves of the same trial alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.job import Curves, Job, Member


@dataclass
class Course:
    """What a pack reported."""

    curves: dict[int, Curves]
    """Position -> everything measured of that member."""
    finished: list[int] = field(default_factory=list)
    """Positions, in the order they finished."""
    failed: dict[int, str] = field(default_factory=dict)
    reports: int = 0


def course_of(job: Job[Any], members: Sequence[Member[Any]], *, device: str = "cpu") -> Course:
    """Train the pack and hold it to the contract of `Job.train` on the way."""
    assert len({job.pack_key(member.params) for member in members}) == 1, "these trials cannot share a pack"
    rows: dict[int, list[tuple[int, dict[str, float]]]] = {position: [] for position in range(len(members))}
    course = Course(curves={})
    for report in job.train(members, device=device):
        course.reports += 1
        names = job.metrics_of(members[0].params)
        assert not names or set(report.values) == set(names) or not len(report.members)
        assert len(set(report.members.tolist())) == len(report.members)
        for name, values in report.values.items():
            assert values.dtype == np.float64, name
            assert values.shape == report.members.shape, name
        for k, position in enumerate(report.members.tolist()):
            assert position not in course.finished, f"member {position} was measured after it had finished"
            assert not rows[position] or rows[position][-1][0] < report.step, "a member's steps must increase"
            rows[position].append((report.step, {name: float(v[k]) for name, v in report.values.items()}))
        for position in report.finished.tolist():
            assert position not in course.finished, f"member {position} finished twice"
            course.finished.append(position)
        course.failed.update(report.failed)
    assert sorted(course.finished) == list(range(len(members))), "every member must finish exactly once"
    for position, measured in rows.items():
        names = dict.fromkeys(name for _, values in measured for name in values)
        course.curves[position] = Curves(
            step=np.array([step for step, _ in measured], dtype=np.int64),
            values={name: np.array([values.get(name, np.nan) for _, values in measured]) for name in names},
            present={name: np.array([name in values for _, values in measured], dtype=np.bool_) for name in names},
        )
    return course


def curves_of(job: Job[Any], members: Sequence[Member[Any]], *, device: str = "cpu") -> dict[int, Curves]:
    """Position -> the member's curves, trained as one pack."""
    return course_of(job, members, device=device).curves


def assert_same_curves(
    one: Curves, other: Curves, *, rtol: float, atol: float, atols: Mapping[str, float] | None = None, what: str = ""
) -> None:
    """Equal steps, and values within `rtol` and `atol` (`atols`: another one for some metrics)."""
    np.testing.assert_array_equal(one.step, other.step, err_msg=f"{what} steps")
    assert set(one.values) == set(other.values)
    for name in one.values:
        near = (atols or {}).get(name, atol)
        np.testing.assert_allclose(one.values[name], other.values[name], rtol=rtol, atol=near, err_msg=f"{what} {name}")


def assert_packed_is_solo(
    job: Job[Any],
    members: Sequence[Member[Any]],
    *,
    rtol: float = 2e-4,
    atol: float = 2e-5,
    atols: Mapping[str, float] | None = None,
    device: str = "cpu",
) -> Course:
    """Each member's curves in the pack are its curves alone, within floating-point tolerance.

    Rounding differs with the shape of a matrix product, and training amplifies it: the default
    tolerance is for trainings of some dozens of steps.
    """
    packed = course_of(job, members, device=device)
    for position, member in enumerate(members):
        alone = curves_of(job, [member], device=device)[0]
        what = f"member {position} of {len(members)} {member}"
        assert_same_curves(packed.curves[position], alone, rtol=rtol, atol=atol, atols=atols, what=what)
    return packed
