"""Whether the outputs of a module fit its targets, and which metrics it reports, by a forward pass of two examples.

PyTorch's own error would come from the loss of the stacked models, and would name neither the module nor its classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from jobs.job import Member
from jobs.module.base import ModuleScience
from jobs.module.data import Data, Inputs, Random
from jobs.module.network import Network, OneNetwork, seeded
from jobs.module.shared import kind_of

_ROWS = 2
_SHAPES: dict[Hashable, tuple[int, ...] | None] = {}
"""Kind of pack -> shape of the output of one example; None: it is no tensor, or the forward pass fails."""


def check_fit(job: ModuleScience, member: Member[Any], data: Data) -> None:
    """Check the outputs of a trial against its targets, where the job has the default loss.

    Raises:
        ValueError: they do not fit; the message has the shape of the outputs, the targets and the line of `model`.
    """
    if job.defines("loss"):
        return
    kind = kind_of(job, member.params)
    if kind not in _SHAPES:
        _SHAPES[kind] = _output_shape(job, member, data)
    shape = _SHAPES[kind]
    if shape is None:
        return
    for name in ("train", "test"):
        if misfit := _misfit(shape, getattr(data, name)[1], data, member.params):
            code = getattr(inspect.unwrap(type(job).model), "__code__", None)
            line = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
            raise ValueError(
                f"{type(job).__name__}.model{line} has an output of shape {shape} for an example, {misfit}"
            )


def _misfit(shape: tuple[int, ...], target: Tensor, data: Data, params: Any) -> str:
    """What does not fit in the targets and what to do, "" where all fits."""
    own = tuple(target.shape[1:])
    if target.dtype.is_floating_point:
        if torch.Size(shape).numel() == torch.Size(own).numel():
            return ""
        return f"and the targets are numbers of shape {own}: return outputs of that shape, or define `loss`"
    if target.dtype not in (torch.int64, torch.int32):
        return f"and the targets are {target.dtype}: make them int64 for classes, or float32 for numbers"
    least, most = int(target.min()), int(target.max())
    if least < 0:
        return (
            f"and the smallest target is {least}: count classes from 0, leave examples out by a mask, or define `loss`"
        )
    classes = max(most + 1, data.classes if params.label_noise else 0)
    what = f"and the targets have {classes} classes (0 to {classes - 1})" + f" and shape {own}" * bool(own)
    if len(shape) != len(own) + 1 or any(out < of for out, of in zip(shape, own, strict=False)):
        return f"{what}: return outputs of shape {(*own, classes)}, the classes last, or define `loss`"
    if shape[-1] < classes:
        return f"{what}: return {classes} outputs in its last dimension, or define `loss`"
    return ""


def reported(job: ModuleScience, params: Any) -> tuple[str, ...]:
    """The metrics that a trial reports, in order; empty where that cannot be known from a few examples."""
    try:
        member = Member(params=params, seed=0)
        data = job.data(params, Random.of_seed(member.seed))
        parts: list[tuple[Any, ...]] = [tuple(map(_first, part)) for part in (data.train, data.test)]
        train, test = parts
        sums, probed = _forward(
            job,
            member,
            lambda one: (
                one.sums((), (), train[0], train[1], train[2] if len(train) == 3 else None),
                one.probed((), (), train, test) if job.defines("probe") else {},
            ),
        )
    except Exception:  # the user's code: the rehearsal says what it raises, or it needs more examples
        return ()
    kinds = [kind for kind in ("loss", "accuracy") if kind in sums]
    return (*(f"{part}_{kind}" for part in ("train", "test") for kind in kinds), *probed)


def _output_shape(job: ModuleScience, member: Member[Any], data: Data) -> tuple[int, ...] | None:
    try:
        output = _forward(job, member, lambda one: one.output((), (), _first(data.train[0])))
    except Exception:  # the user's code: training raises it again, with its own lines
        return None
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else None


def _forward(job: ModuleScience, member: Member[Any], pass_: Callable[[OneNetwork], Any]) -> Any:
    """What a pass through a module of its own returns: one that counts its calls trains as if there was none."""
    with seeded(member.seed, "module/fit"), torch.no_grad():
        network = Network.of(job, member)
        names = tuple(network.trained), tuple(network.fixed)
        return pass_(
            OneNetwork(job=job, params=member.params, module=network.module.eval(), trained=names[0], fixed=names[1])
        )


def _first(value: Inputs) -> Inputs:
    """The first rows of a tensor, or of each of a tuple of them."""
    return value[:_ROWS] if isinstance(value, Tensor) else tuple(tensor[:_ROWS] for tensor in value)
