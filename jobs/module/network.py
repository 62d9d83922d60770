"""The networks of a pack's trials before training, and the functions of one network that a pack vectorises.

Shapes: M models, B batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    """PyTorch's generator of the CPU, seeded by the trial and restored afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(int(random.stream_keys([seed], stream)[0, 0]) & ((1 << 63) - 1))
    try:
        yield
    finally:
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
        for (name, one), (_, two) in zip(mine, theirs, strict=True):
            for key, value in vars(one).items():
                if not key.startswith("_") and not _equal(value, vars(two).get(key)):
                    return f"the attribute {name}.{key}".replace(" .", " ")
        return ""


def _kind(module: nn.Module) -> str:
    """Of a class that `model` defines itself, too: each call makes another one."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _equal(one: object, two: object, depth: int = 3) -> bool:
    if one is two:
        return True
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_equal(value, two[key], depth) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(_equal(a, b, depth) for a, b in zip(one, two, strict=True))
    try:
        if bool(one == two):
            return True
    except Exception:  # the `==` of a user's class
        return False
    return depth > 0 and hasattr(one, "__dict__") and _equal(vars(one), vars(two), depth - 1)


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
            losses = self.job.loss(self.params, self.output(weights, fixed, x), y)
        loss = losses.mean() if mask is None else (losses * mask).sum() / mask.sum()
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
        sums = {"loss": (loss if mask is None else loss * mask).double().sum()}
        sums["loss/weight"] = torch.full_like(loss, 1.0).sum() if mask is None else mask.sum()
        if right is not None:
            held = mask.expand_as(right) if mask is not None and mask.dim() == right.dim() else None
            sums["accuracy"] = (right if held is None else right * held).double().sum()
            sums["accuracy/weight"] = (
                torch.full_like(right, 1.0, dtype=loss.dtype).sum() if held is None else held.sum()
            )
        return sums
