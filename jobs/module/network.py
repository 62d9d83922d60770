"""The networks of a pack's trials before training, and the functions of one network that a pack vectorises.

Shapes: M models, B batch.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jobs.job import Member
from jobs.module.base import ModuleScience
from jobs.module.data import Data, Inputs, Random
from jobs.module.operations import replaced
from jobs.packed import random


@contextlib.contextmanager
def seeded(seed: int, stream: str) -> Iterator[None]:
    """PyTorch's generators of the CPU and of the GPU in use, seeded by the trial and restored afterwards."""
    generators = [torch.default_generator]
    if torch.cuda.default_generators:  # there are none before CUDA is used
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(int(random.stream_keys([seed], stream)[0, 0]) & ((1 << 63) - 1))
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """One trial's module before training."""

    module: nn.Module
    trained: Mapping[str, Tensor]
    """Name -> parameter; a parameter with two names has the first."""
    fixed: Mapping[str, Tensor]
    """Buffers, and parameters that are not trained."""

    @classmethod
    def of(cls, job: ModuleScience, member: Member[Any]) -> Network:
        """The module that the job returns, made under the trial's seed.

        Raises:
            TypeError: it is no module, or a parameter is not float32.
        """
        with seeded(member.seed, "module/init"):
            module = job.model(member.params)
        where = f"{type(job).__name__}.model"
        if not isinstance(module, nn.Module):
            raise TypeError(f"{where} must return a torch.nn.Module; got {type(module).__name__}")
        named = dict(module.named_parameters())
        wrong = next((name for name, p in named.items() if p.requires_grad and p.dtype != torch.float32), None)
        if wrong is not None:
            raise TypeError(f"{where}: parameters must be float32; {wrong} is {named[wrong].dtype}")
        trained = {name: p.detach() for name, p in named.items() if p.requires_grad}
        if not trained:
            raise TypeError(f"{where}: the module has no parameters that require a gradient")
        frozen = {name: p.detach() for name, p in named.items() if not p.requires_grad}
        return cls(module=module, trained=trained, fixed=frozen | dict(module.named_buffers()))

    def difference(self, other: Network) -> str:
        """Where another network does not have the structure of this one; "" where it has."""
        mine, theirs = list(self.module.named_modules()), list(other.module.named_modules())
        if [(name, _kind(m)) for name, m in mine] != [(name, _kind(m)) for name, m in theirs]:
            return "its parts"
        for ours, others in ((self.trained, other.trained), (self.fixed, other.fixed)):
            if [(n, t.shape, t.dtype) for n, t in ours.items()] != [(n, t.shape, t.dtype) for n, t in others.items()]:
                return "the shapes of its parameters or buffers"
        names = _registered(self.module), _registered(other.module)
        for (name, one), (_, two) in zip(mine, theirs, strict=True):
            for key in dict.fromkeys([*vars(one), *vars(two)]):
                if key in _OF_EVERY_MODULE:
                    continue
                if not _equal(vars(one).get(key), vars(two).get(key), names):
                    return f"the attribute {name}.{key}".replace(" .", " ")
        return ""


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that are compared as parts, parameters and buffers, or set before training."""
Names = tuple[Mapping[int, str], Mapping[int, str]]
"""Of two modules, `id` -> name of what is registered in them."""


def _registered(module: nn.Module) -> dict[int, str]:
    parts = (module.named_modules(), module.named_parameters(), module.named_buffers())
    return {id(value): f"{k} {name}" for k, part in enumerate(parts) for name, value in part}


def _kind(module: nn.Module) -> str:
    """Of a class that `model` defines itself, too: each call makes another one."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _equal(one: object, two: object, names: Names, depth: int = 3) -> bool:
    """Whether two attributes mean the same in the forward pass; False where that is not known."""
    if one is two:
        return True
    if id(one) in names[0]:
        return names[0][id(one)] == names[1].get(id(two))
    if type(one) is not type(two) and not (isinstance(one, nn.Module) and isinstance(two, nn.Module)):
        return False
    if isinstance(one, weakref.ref) and isinstance(two, weakref.ref):
        return _equal(one(), two(), names, depth)
    if isinstance(one, functools.partial) and isinstance(two, functools.partial):
        return _equal((one.func, one.args, one.keywords), (two.func, two.args, two.keywords), names, depth)
    if isinstance(one, MethodType) and isinstance(two, MethodType):
        return one.__func__ is two.__func__ and _equal(one.__self__, two.__self__, names, depth)
    if isinstance(one, FunctionType) and isinstance(two, FunctionType):
        return one.__code__ is two.__code__ and depth > 0 and _equal(_captured(one), _captured(two), names, depth - 1)
    if isinstance(one, type):
        return False
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key], names, depth) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(_equal(a, b, names, depth) for a, b in zip(one, two, strict=True))
    try:
        if bool(one == two):
            return True
    except Exception:  # the `==` of a user's class
        return False
    return depth > 0 and hasattr(one, "__dict__") and _equal(vars(one), vars(two), names, depth - 1)


def _captured(function: FunctionType) -> tuple[object, ...]:
    """What a function has beside its code."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return (function.__defaults__, function.__kwdefaults__, function.__dict__, cells)


@dataclass(frozen=True, kw_only=True, eq=False)
class OneNetwork:
    """The functions of a single network, by its tensors: what `torch.func.vmap` vectorises."""

    job: ModuleScience
    params: Any
    module: nn.Module
    trained: Sequence[str]
    fixed: Sequence[str]

    def output(self, weights: Sequence[Tensor], fixed: Sequence[Tensor], x: Inputs) -> Any:
        """The module's output; with the tensors that it has itself where none are given."""
        if not weights:
            return self.module(x) if isinstance(x, Tensor) else self.module(*x)
        tensors = dict(zip(self.trained, weights, strict=True)) | dict(zip(self.fixed, fixed, strict=True))
        return functional_call(self.module, tensors, x)

    def batch_loss(
        self,
        weights: Sequence[Tensor],
        fixed: Sequence[Tensor],
        x: Inputs,
        y: Tensor,
        mask: Tensor | None,
        key: Tensor,
        step: Tensor,
    ) -> Tensor:
        """What a training step decreases: the mean loss of a batch, and the regulariser."""
        with replaced(Random(key, step), stacked=bool(weights)):
            losses = self.job.training_loss(self.params, self.output(weights, fixed, x), y)
        if mask is None:
            loss = losses.mean()
        else:
            mask = _over(mask, losses)
            loss = (losses * mask).sum() / mask.sum().clamp(min=1e-12)
        more = self.job.regulariser(self.params, self.named(weights))
        return loss if more is None else loss + more

    def named(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """The trained parameters by name."""
        if not weights:
            found = dict(self.module.named_parameters())
            return {name: found[name] for name in self.trained}
        return dict(zip(self.trained, weights, strict=True))

    def fresh(self, key: Tensor, step: Tensor) -> tuple[Inputs, Tensor, Tensor | None]:
        """The batch of a job that draws its own."""
        x, y, *mask = self.job.batch(self.params, Random(key, step), step)
        return x, y, mask[0] if mask else None

    def masks(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weight masks, by name."""
        return dict(self.job.weight_masks(self.params, self.named(weights)))

    def probed(
        self, weights: Sequence[Tensor], fixed: Sequence[Tensor], train: Sequence[Any], test: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The job's further metrics."""

        def model(*inputs: Tensor) -> Any:
            with replaced(None, stacked=bool(weights)):
                return self.output(weights, fixed, inputs[0] if len(inputs) == 1 else inputs)

        data = Data(train=tuple(train), test=tuple(test))
        return dict(self.job.probe(self.params, model, self.named(weights), data))

    def sums(
        self, weights: Sequence[Tensor], fixed: Sequence[Tensor], x: Inputs, y: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Sums over examples: of the loss, of what is right, and of the weights of both."""
        with replaced(None, stacked=bool(weights)):
            output = self.output(weights, fixed, x)
        loss, right = self.job.loss(self.params, output, y), self.job.right(self.params, output, y)
        counted = None if mask is None else _over(mask, loss)
        sums = {"loss": (loss if counted is None else loss * counted).double().sum()}
        sums["loss/weight"] = torch.full_like(loss, 1.0).sum() if counted is None else counted.sum()
        if right is not None:
            held = _over(mask, right) if mask is not None and mask.dim() <= right.dim() else None
            sums["accuracy"] = (right if held is None else right * held).double().sum()
            sums["accuracy/weight"] = (
                torch.full_like(right, 1.0, dtype=loss.dtype).sum() if held is None else held.sum()
            )
        return sums


def _over(mask: Tensor, values: Tensor) -> Tensor:
    """The mask of examples or of tokens as one of these values: what counts of an example counts of its tokens."""
    return mask.view(*mask.shape, *(1,) * (values.dim() - mask.dim())).expand_as(values)
