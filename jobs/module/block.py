"""Models of a user's module that train together: one stacked module, or one model by its own forward pass.

Shapes: M models (P of them in the tensors), K steps, B batch.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from jobs.job import Member
from jobs.module.base import ModuleScience
from jobs.module.cost import CHUNK_STEPS, evaluated_rows
from jobs.module.data import Data, Inputs
from jobs.module.examples import Examples, train_examples
from jobs.module.graph import Graphs, Recorded
from jobs.module.network import Network, OneNetwork, seeded
from jobs.module.shared import shared_params
from jobs.packed import random
from jobs.packed.batches import Batches
from jobs.packed.block import Block, weakly
from jobs.packed.optim import FlatParameters, OptimiserSettings, make_optimiser
from jobs.packed.state import fill
from jobs.state import TrialState

COMPACT_BELOW = 0.75
"""A stacked block is made smaller once this share of its models is left: what is vectorised depends on their number."""

Parts = tuple[Inputs, Tensor, Tensor | None]


class ModuleBlock(Block):
    """What both kinds of blocks share: tensors, batches, optimiser and schedule."""

    def __init__(
        self,
        job: ModuleScience,
        members: Sequence[Member[Any]],
        networks: Sequence[Network],
        data: Sequence[Data],
        device: str,
        row_bytes: float,
    ) -> None:
        """Args:
        job: the user's job.
        members: (M,) trials, of one pack key and one layout of their data.
        networks: (M,) of one structure.
        data: (M,)
        device: where they train.
        row_bytes: activations of one example in a forward pass.
        """
        first = networks[0]
        self._job, self._device, self._row_bytes = job, torch.device(device), row_bytes
        self._seeds = [member.seed for member in members]
        self._shared = members[0].params
        self._module = first.module.to(device)
        self._trained, self._fixed_names = tuple(first.trained), tuple(first.fixed)
        params = [member.params for member in members]
        self._train, self._test = train_examples(data, members, device), Examples.of([d.test for d in data], device)
        count = len(self._train)
        self._batches = Batches(
            self._seeds,
            [count] * len(members),
            [p.batch_size or count for p in params],
            self._shared.batch_order,
            device,
        )
        self._parameters = FlatParameters([tuple(t.shape) for t in first.trained.values()], len(members), device)
        for name, view in zip(self._trained, self._parameters.views(), strict=True):
            view.copy_(torch.stack([network.trained[name] for network in networks]))
        self._fixed = [torch.stack([network.fixed[name] for network in networks]).to(device) for name in first.fixed]
        self._optimiser = make_optimiser(OptimiserSettings.of(params), self._parameters)
        self._clips = any(p.clip_norm for p in params)
        self._limits_M = torch.tensor([p.clip_norm for p in params], device=device)
        self._keys = random.stream_keys(self._seeds, "module", device)
        self._live = torch.arange(len(members))
        self._one = OneNetwork(
            job=job, params=self._params_of(params), module=self._module, trained=self._trained, fixed=self._fixed_names
        )
        self._online = job.defines("batch")
        self._whole: Parts | None = None
        self._masks: dict[str, Tensor] = {}
        self._bind()
        if job.defines("weight_masks"):
            with torch.no_grad():
                self._masks = self._weight_masks()
            self._prune()

    def _bind(self) -> None:
        """Make what refers to the tensors of the current models."""
        self._gradients = self._optimiser.gradient.views()
        if self._batches.full and not self._online:
            self._whole = self._train.part(0, len(self._train))

    def _params_of(self, params: Sequence[Any]) -> Any:
        """What the methods of the job get as the parameters of these models."""
        return params[0]

    @abstractmethod
    def _losses(self, parts: Parts, step: int, at: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """(M,) losses of a batch and their gradients, after `step` steps; `at` is that number on the device."""

    @abstractmethod
    def _fresh(self, step: int, at: Tensor) -> Parts:
        """The batch of a job that draws its own, at this step."""

    @abstractmethod
    def _weight_masks(self) -> dict[str, Tensor]:
        """Name of a parameter -> masks with a leading model dimension."""

    @abstractmethod
    def _probed(self) -> Mapping[str, Tensor]:
        """(M,) further metrics of the job."""

    @abstractmethod
    def _sums(self, examples: Examples, parts: Parts) -> Mapping[str, Tensor]:
        """(M,) sums over examples, as `OneNetwork.sums`."""

    def advance(self, step: int, count: int) -> None:
        for _ in self.steps(step, count):
            pass

    def steps(self, step: int, count: int) -> Iterator[None]:
        """Train as `advance`, one step at a time; the first of a chunk draws the batches of all its steps."""
        self._module.train()
        params = self._shared
        while count:
            steps = min(count, CHUNK_STEPS)
            draws = self._whole is None and not self._online
            rows_KMB = self._batches.draw(step, steps) if draws else None
            at_K = torch.arange(step, step + steps, device=self._device)
            for k in range(steps):
                if not params.constant_rate:
                    self._optimiser.set_rate(params.rate_factor(step + k))
                if rows_KMB is not None:
                    parts = self._train.gather(rows_KMB[k])
                else:
                    parts = self._fresh(step + k, at_K[k]) if self._whole is None else self._whole
                self._step(parts, step + k, at_K[k])
                self._prune()
                yield
            step += steps
            count -= steps

    def _prune(self) -> None:
        if self._masks:
            with torch.no_grad():
                for name, view in zip(self._trained, self._parameters.views(), strict=True):
                    if name in self._masks:
                        view.mul_(self._masks[name])

    def _step(self, parts: Parts, step: int, at: Tensor) -> None:
        _, gradients = self._losses(parts, step, at)
        optimiser = self._optimiser
        with torch.no_grad():
            scale_M = optimiser.gradient_scale
            if self._clips:
                norm_M = sum(g.reshape(len(g), -1).square().sum(1) for g in gradients)
                assert isinstance(norm_M, Tensor)
                factor_M = (self._limits_M / (norm_M.sqrt() + 1e-6)).clamp(max=1.0)
                factor_M = torch.where(self._limits_M > 0, factor_M, 1.0)
                scale_M = factor_M if scale_M is None else factor_M * scale_M
            if optimiser.accumulate_flat is not None:
                optimiser.gradient.flat.mul_(optimiser.accumulate_flat)
            elif optimiser.accumulate:
                optimiser.gradient.flat.mul_(optimiser.accumulate)
            if scale_M is None:
                torch._foreach_copy_(self._gradients, list(gradients))
            else:
                keeps = optimiser.accumulate_flat is not None or optimiser.accumulate > 0
                for held, gradient in zip(self._gradients, gradients, strict=True):
                    scale = scale_M.view(-1, *(1,) * (gradient.dim() - 1))
                    if keeps:
                        held.addcmul_(gradient, scale)
                    else:
                        torch.mul(gradient, scale, out=held)
            optimiser.update()

    @torch.no_grad()
    def measure(self) -> Mapping[str, Tensor]:
        self._module.eval()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it has no rule for a model dimension
        try:
            measured = {**self._means("train", self._train), **self._means("test", self._test)}
            if self._job.defines("probe"):
                measured |= {name: value.double() for name, value in self._probed().items()}
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        if self._shared.stop_accuracy and not {"train_accuracy", "test_accuracy"} <= measured.keys():
            raise ValueError("stop_accuracy needs an accuracy, and this job measures none (`right` returns None)")
        return {name: value[self._live.to(value.device)] for name, value in measured.items()}

    def _means(self, name: str, examples: Examples) -> dict[str, Tensor]:
        batch = self._shared.batch_size or len(self._train)
        rows = evaluated_rows(self._parameters.models, self._row_bytes, batch, self._device.type)
        totals: dict[str, Tensor] = {}
        for start in range(0, len(examples), rows):
            for key, value in self._sums(examples, examples.part(start, min(start + rows, len(examples)))).items():
                totals[key] = totals[key] + value if key in totals else value
        means = {key: totals[key] / totals[f"{key}/weight"] for key in ("loss", "accuracy") if key in totals}
        return {f"{name}_{key}": value for key, value in means.items()}

    def keep(self, index: Tensor) -> None:
        self._live = self._live[index]
        if len(self._live) <= COMPACT_BELOW * self._parameters.models:
            self._compact(self._live)
            self._live = torch.arange(len(self._live))

    def save(self) -> Mapping[str, Tensor]:
        saved = {**self._optimiser.save(), **self._buffers()}
        if len(self._live) == self._parameters.models:
            return saved
        return {name: tensor[self._live.to(tensor.device)] for name, tensor in saved.items()}

    def load(self, states: Sequence[TrialState]) -> None:
        self._optimiser.load(states)
        fill(self._buffers(), states)

    def _buffers(self) -> dict[str, Tensor]:
        """Name in a saved state -> (M, ...) buffers, which training may change."""
        named = dict(self._module.named_buffers())
        return {
            f"buffer.{name}": tensor
            for name, tensor in zip(self._fixed_names, self._fixed, strict=True)
            if name in named
        }

    def _compact(self, index: Tensor) -> None:
        self._batches.keep(index)
        self._parameters.keep(index)
        self._optimiser.keep(index)
        self._seeds = [self._seeds[k] for k in index.tolist()]
        index = index.to(self._device)
        self._train, self._test = self._train.keep(index), self._test.keep(index)
        self._keys, self._limits_M = self._keys[index], self._limits_M[index]
        self._fixed = [tensor[index] for tensor in self._fixed]
        self._masks = {name: mask[index] for name, mask in self._masks.items()}
        self._bind()


class StackedBlock(ModuleBlock):
    """M models as one: the forward pass is vectorised by `torch.func.vmap`, the sum of their losses is differentiated.

    (vmap of a gradient would need rules for backward passes, which attention has not.)
    """

    def __init__(self, *arguments: Any, graphs: Graphs | None = None) -> None:
        """`graphs`: where the operations of a step are recorded, to be replayed; None: they are not."""
        self._graphs = graphs
        super().__init__(*arguments)

    def _params_of(self, params: Sequence[Any]) -> Any:
        return shared_params(self._job, params)

    def _bind(self) -> None:
        super()._bind()
        self._weights = [view.detach().requires_grad_() for view in self._parameters.views()]
        self._step_of = self._maybe_recorded("step", weakly(self._differentiated))
        self._sums_of: dict[int, Callable[..., Any]] = {}
        for examples in (self._train, self._test):
            of = vmap(self._one.sums, in_dims=(0, 0, 0, 0, None if examples.mask is None else 0))
            self._sums_of[id(examples)] = self._maybe_recorded("sums", of)

    def _maybe_recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._graphs is None else Recorded(name, function, self._graphs)

    def _differentiated(
        self, weights: Sequence[Tensor], fixed: Sequence[Tensor], parts: Parts, keys: Tensor, at: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        if self._graphs is not None:
            weights = [weight.detach().requires_grad_() for weight in weights]
        with torch.enable_grad():
            of = vmap(self._one.batch_loss, in_dims=(0, 0, 0, 0, None if parts[2] is None else 0, 0, None))
            losses = of(weights, fixed, *parts, keys, at)
            gradients = torch.autograd.grad(losses.sum(), weights, materialize_grads=True)
        return losses.detach(), gradients

    def _losses(self, parts: Parts, step: int, at: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        losses: tuple[Tensor, Sequence[Tensor]] = self._step_of(self._weights, self._fixed, parts, self._keys, at)
        return losses

    def _fresh(self, step: int, at: Tensor) -> Parts:
        parts: Parts = vmap(self._one.fresh, in_dims=(0, None), out_dims=self._out_dims())(self._keys, at)
        return parts

    def _out_dims(self) -> Any:
        """Where `fresh` has the model dimension: nowhere in a mask that there is not."""
        if not hasattr(self, "_masked"):
            self._masked = self._one.fresh(self._keys[0], torch.zeros((), dtype=torch.int64))[2] is not None
        return (0, 0, 0 if self._masked else None)

    def _weight_masks(self) -> dict[str, Tensor]:
        masks: dict[str, Tensor] = vmap(self._one.masks)(self._weights)
        return masks

    def _probed(self) -> Mapping[str, Tensor]:
        parts = [tuple(p for p in e.part(0, len(e)) if p is not None) for e in (self._train, self._test)]
        probed: Mapping[str, Tensor] = vmap(self._one.probed)(self._weights, self._fixed, *parts)
        return probed

    def _sums(self, examples: Examples, parts: Parts) -> Mapping[str, Tensor]:
        sums: Mapping[str, Tensor] = self._sums_of[id(examples)](self._weights, self._fixed, *parts)
        return sums


class SingleBlock(ModuleBlock):
    """One model, by its own forward pass: for a module that cannot be vectorised, or is faster by itself.

    A module that draws random numbers by itself draws them from PyTorch's generator, seeded by the trial and the step.
    """

    seeds_generator = False
    """Whether the generator is seeded at every step, and before every measurement."""

    def _seeded(self, stream: str) -> contextlib.AbstractContextManager[None]:
        return seeded(self._seeds[0], stream) if self.seeds_generator else contextlib.nullcontext()

    def measure(self) -> Mapping[str, Tensor]:
        with self._seeded("module/measure"):
            return super().measure()

    def _bind(self) -> None:
        super()._bind()
        for name, view in zip(self._trained, self._parameters.views(), strict=True):
            _put(self._module, name, nn.Parameter(view[0]))
        named = dict(self._module.named_parameters())
        self._leaves = [named[name] for name in self._trained]
        self._own = self._job.torch_optimiser(self._shared, self._leaves)
        self._rates = [group["lr"] for group in self._own.param_groups] if self._own else []

    def _buffers(self) -> dict[str, Tensor]:
        return {f"buffer.{name}": tensor[None] for name, tensor in self._module.named_buffers()}

    def save(self) -> Mapping[str, Tensor]:
        return {} if self._own is not None else super().save()

    def _losses(self, parts: Parts, step: int, at: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        x, y, mask = _first(parts)
        with self._seeded(f"module/step {step}"):
            loss = self._one.batch_loss((), (), x, y, mask, self._keys[0], at)
        gradients = torch.autograd.grad(loss, self._leaves, materialize_grads=True)
        return loss[None], [g[None] for g in gradients]

    def _step(self, parts: Parts, step: int, at: Tensor) -> None:
        if self._own is None:
            super()._step(parts, step, at)
            return

        def closure() -> Any:  # a tensor, as usual: to read it would wait for the device
            (loss,), gradients = self._losses(parts, step, at)
            for leaf, gradient in zip(self._leaves, gradients, strict=True):
                leaf.grad = gradient[0]
            if self._shared.clip_norm:
                nn.utils.clip_grad_norm_(self._leaves, self._shared.clip_norm)
            return loss.detach()

        for group, rate in zip(self._own.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._optimiser.rate
        self._own.step(closure)

    def _fresh(self, step: int, at: Tensor) -> Parts:
        with self._seeded(f"module/batch {step}"):
            x, y, mask = self._one.fresh(self._keys[0], at)
        inputs = x[None] if isinstance(x, Tensor) else tuple(tensor[None] for tensor in x)
        return inputs, y[None], None if mask is None else mask[None]

    def _weight_masks(self) -> dict[str, Tensor]:
        with seeded(self._seeds[0], "module/masks"):
            return {name: mask[None] for name, mask in self._one.masks(()).items()}

    def _probed(self) -> Mapping[str, Tensor]:
        parts = [[p for p in _first(e.part(0, len(e))) if p is not None] for e in (self._train, self._test)]
        return {name: torch.as_tensor(value)[None] for name, value in self._one.probed((), (), *parts).items()}

    def _sums(self, examples: Examples, parts: Parts) -> Mapping[str, Tensor]:
        return {name: value[None] for name, value in self._one.sums((), (), *_first(parts)).items()}


def _first(parts: Parts) -> Parts:
    """The batch of the only model."""
    x, y, mask = parts
    inputs = x[0] if isinstance(x, Tensor) else tuple(tensor[0] for tensor in x)
    return inputs, y[0], None if mask is None else mask[0]


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace a parameter, wherever the module has it."""
    old = module.get_parameter(name)
    for part in module.modules():
        for key, value in part._parameters.items():
            if value is old:
                part._parameters[key] = parameter
