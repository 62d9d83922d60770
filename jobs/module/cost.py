"""What a pack of modules costs, counted in one step of one module, and memory in one of two stacked modules.

The first setting of a kind is counted: a training step and a measurement of its batch, on the CPU. Of further settings
the module alone is made, and the counts are scaled by its number of parameters: a sweep may have hundreds of widths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from jobs.job import Cost, Member, log_spaced_steps
from jobs.module.base import ModuleScience
from jobs.module.data import Inputs, Random, tensors_of
from jobs.module.network import Network, OneNetwork
from jobs.module.operations import without_fallback
from jobs.packed import random
from jobs.packed.cost import evaluation_bytes
from jobs.packed.memory import drawn_bytes, longest_gap
from jobs.packed.precision import products
from jobs.packed.storages import PeakMemory

_MOST_COUNTED = 8
"""Settings of one job that are counted; those of further ones are scaled."""
_OPTIMISER_LAUNCHES = 25
CHUNK_STEPS = 64
"""Steps whose batches are drawn at once."""
EVALUATION_BYTES = 1 << 23
"""Activations held at once while measuring on a CPU, unless that leaves each model too few rows."""
_EVALUATED_ROWS = 256
"""With 62 rows of each model, a batched product took 12 to 32% longer a row (perceptrons of width 256, n = 1)."""
_STACK_BYTES = 64 << 20
"""Working set of stacked models on a CPU. Up to about here a step of one model became shorter with each further model,
or stayed as it was; at 300 MB it was longer (perceptrons, a transformer and a small CNN)."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Counts of one module."""

    parameters: int
    launches: float
    """Operations of a training step."""
    flop: float
    """Of a training step."""
    elements: float
    """Elements that a training step writes."""
    forward_share: float
    """Part of these that is one forward pass."""
    batch: int
    examples: int
    """Training and test examples."""
    data_bytes: float
    model_bytes: float
    """Parameters, the state of the optimiser, and activations of a step."""
    row_bytes: float
    """Activations of one example in a forward pass."""
    training: int
    """Training examples."""
    network_bytes: float
    """Parameters and buffers."""
    step_bytes: float
    """Peak of a training step beyond the parameters and the batch, gradients included."""
    measured_bytes: float
    """Peak of the measurement of one example."""


class _Counter(TorchDispatchMode):
    """Counts operations."""

    launches, flop, elements = 0, 0.0, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.launches += 1
        if not func.is_view:
            values = out if isinstance(out, (tuple, list)) else (out,)
            self.elements += sum(value.numel() for value in values if isinstance(value, Tensor))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        return out


_PROFILES: dict[tuple[Any, ...], Profile] = {}


def profile_of(job: ModuleScience, params: Any) -> Profile:
    """The counts of a module with these parameters.

    Raises:
        Exception: whatever the job's `model` and `data` raise.
    """
    kind = (type(job), job.pack_key(params))
    if kind not in _PROFILES:
        counted = [profile for (of, _), profile in _PROFILES.items() if of is type(job)]
        _PROFILES[kind] = _count(job, params) if len(counted) < _MOST_COUNTED else _scaled(job, params, counted)
    return _PROFILES[kind]


def models_stacked(job: ModuleScience, params: Any, device: str) -> int:
    """How many models are stacked at most: as many as fit `_STACK_BYTES`, at least 4; on a GPU all of them."""
    if not device.startswith("cpu"):
        return 1 << 30
    return max(4, int(_STACK_BYTES / profile_of(job, params).model_bytes))


def _count(job: ModuleScience, params: Any) -> Profile:
    member = Member(params=params, seed=0)
    network, data = Network.of(job, member), job.data(params, Random.of_seed(0))
    examples = len(next(tensors_of(data.train)))
    batch = min(params.batch_size or examples, examples)
    x = tuple(tensor[:batch] for tensor in tensors_of(data.train[:1]))
    trained, fixed = tuple(network.trained), tuple(network.fixed)
    one = OneNetwork(job=job, params=params, module=network.module, trained=trained, fixed=fixed)
    y, mask = data.train[1][:batch], data.train[2][:batch] if len(data.train) == 3 else None
    forward, whole = _Counter(), _Counter()
    batched = x[0] if isinstance(data.train[0], Tensor) else x, y, mask
    key, step = random.stream_keys([0], "module")[0], torch.zeros((), dtype=torch.int64)
    leaves = [p for p in network.module.parameters() if p.requires_grad]

    def train(counter: contextlib.AbstractContextManager[object] | None = None) -> object:
        with counter or contextlib.nullcontext():
            loss = one.batch_loss((), (), *batched, key, step)
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    with whole:
        train(forward)
    own = _tensors((network.trained, network.fixed, batched, key, step))
    alone = train, lambda: one.sums((), (), *batched), own
    stacked = functools.partial(_two, one, network, batched, key, step)
    step_bytes, measured_bytes = _peaks(alone, stacked, network.module, params.matmul_precision)
    parameters = sum(p.numel() for p in leaves)
    copies = 2 if params.optimiser == "sgd" else 4
    tensors = [*tensors_of(data.train), *tensors_of(data.test)]
    return Profile(
        parameters=parameters,
        launches=whole.launches,
        flop=whole.flop,
        elements=whole.elements,
        forward_share=forward.elements / max(1.0, whole.elements),
        batch=batch,
        examples=examples + len(next(tensors_of(data.test))),
        data_bytes=float(sum(t.numel() * t.element_size() for t in tensors)),
        model_bytes=4.0 * (parameters * copies + whole.elements),
        row_bytes=4.0 * forward.elements / batch,
        training=examples,
        network_bytes=float(sum(t.nbytes for t in (*network.trained.values(), *network.fixed.values()))),
        step_bytes=step_bytes,
        measured_bytes=measured_bytes / batch,
    )


Passes = tuple[Callable[[], object], Callable[[], object], Sequence[Tensor]]
"""A training step, a measurement, and the tensors that are there beforehand."""


def _peaks(alone: Passes, stacked: Callable[[], Passes], module: nn.Module, precision: str) -> tuple[float, float]:
    """Peak bytes of a training step and of a measurement of its batch: of one of two stacked models if they can be.

    (A vectorised convolution copies what it reads and writes into another order of dimensions.)
    """
    try:
        with without_fallback():
            step, measured = _peaks_of(*stacked(), module, precision)
            return step / 2, measured / 2
    except Exception:  # whatever vmap or the user's code raises under it
        return _peaks_of(*alone, module, precision)


def _peaks_of(
    train: Callable[[], object],
    measure: Callable[[], object],
    tensors: Sequence[Tensor],
    module: nn.Module,
    precision: str,
) -> tuple[float, float]:
    peaks = []
    for run, training in ((train, True), (measure, False)):
        counting = PeakMemory()
        for tensor in tensors:
            counting.storages.add(tensor)
        before = counting.storages.live
        module.train(training)
        with counting, torch.set_grad_enabled(training), products(precision if training else "fp32"):
            run()
        peaks.append(float(counting.storages.peak - before))
    return peaks[0], peaks[1]


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _two(
    one: OneNetwork, network: Network, batch: tuple[Inputs, Tensor, Tensor | None], key: Tensor, step: Tensor
) -> Passes:
    """The passes of two models, stacked."""

    def twice(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor])

    weights = [twice(t).requires_grad_() for t in network.trained.values()]
    fixed = [twice(t) for t in network.fixed.values()]
    x, y, mask = batch
    parts = twice(x) if isinstance(x, Tensor) else tuple(map(twice, x)), twice(y), None if mask is None else twice(mask)
    dims = (0, 0, 0, 0, None if mask is None else 0)
    keys = twice(key)

    def train() -> object:
        losses = vmap(one.batch_loss, in_dims=(*dims, 0, None))(weights, fixed, *parts, keys, step)
        return torch.autograd.grad(losses.sum(), weights, materialize_grads=True)

    def measure() -> object:
        return vmap(one.sums, in_dims=dims)(weights, fixed, *parts)

    return train, measure, _tensors((weights, fixed, parts, keys, step))


def _scaled(job: ModuleScience, params: Any, counted: Sequence[Profile]) -> Profile:
    network = Network.of(job, Member(params=params, seed=0))
    parameters = sum(t.numel() for t in network.trained.values())
    near = min(counted, key=lambda profile: abs(math.log(profile.parameters / parameters)))
    ratio = parameters / near.parameters
    most = max(1.0, ratio)
    return dataclasses.replace(
        near,
        parameters=parameters,
        flop=near.flop * ratio,
        elements=near.elements * most,
        model_bytes=near.model_bytes * most,
        row_bytes=near.row_bytes * most,
        network_bytes=near.network_bytes * ratio,
        step_bytes=near.step_bytes * most,
        measured_bytes=near.measured_bytes * most,
    )


def evaluated_rows(models: int, row_bytes: float, batch: int, device: str) -> int:
    """Examples of each of `models` stacked models that are measured at once.

    As many as `EVALUATION_BYTES` holds, and at least what a training step holds: activations of a batch, and as much
    again for their gradients.
    """
    held = int(evaluation_bytes(EVALUATION_BYTES, device) / (models * row_bytes))
    return max(1, held, min(_EVALUATED_ROWS, 2 * batch))


def memory_bytes(job: ModuleScience, params: Any, models: int, device: str) -> float:
    """Peak bytes of a pack whose models are stacked, each on data of its own; 0 where the user's code fails here."""
    try:
        p = profile_of(job, params)
    except Exception:
        return 0.0
    cpu = device.startswith("cpu")
    stacked = math.ceil(models / math.ceil(models / models_stacked(job, params, device)))
    state = 4.0 * p.parameters * (2 if params.optimiser == "sgd" else 4) + p.network_bytes - 4.0 * p.parameters
    # The networks and the data are made on the host.
    held = models * (p.data_bytes + state + cpu * (p.data_bytes + p.network_bytes))
    gap = longest_gap(log_spaced_steps(params.steps, params.curve_points))
    drawing = rows = 0.0
    if not job.defines("batch"):
        draw = functools.partial(
            drawn_bytes,
            stacked,
            horizon=params.steps,
            batch=p.batch,
            used=p.training,
            order=params.batch_order,
        )
        drawing, rows = draw(steps=min(CHUNK_STEPS, gap))
        if gap > CHUNK_STEPS:  # the rows of a chunk are there while the next is drawn
            drawing = max(drawing, rows + draw(steps=min(CHUNK_STEPS, gap - CHUNK_STEPS))[0])
    row = p.data_bytes / p.examples
    step = stacked * (p.step_bytes + 2 * p.batch * row)
    examples = max(p.training, p.examples - p.training)
    piece = stacked * min(examples, evaluated_rows(stacked, p.row_bytes, p.batch, device))
    peak = held + max(drawing, rows + step, piece * (p.measured_bytes + row))
    # Before, two models are stacked on the host to see whether they can be (`jobs.module.pack.why_alone`).
    piece = 2 * min(examples, evaluated_rows(2, p.row_bytes, min(p.batch, 8), "cpu"))
    tried = 4 * p.data_bytes + 2 * (p.network_bytes + state) + piece * (p.measured_bytes + row)
    return max(peak, cpu * (models * (p.data_bytes + p.network_bytes) + tried))


def pack_cost(job: ModuleScience, params: Any, models: int) -> Cost:
    """The cost of a pack of `models` trials; zero, which means unknown, where the user's code fails here."""
    try:
        profile = profile_of(job, params)
    except Exception:  # the user's code: the rehearsal says what it raises, with the trial
        return Cost(launches=0.0, matmul_flop=0.0, element_visits=0.0, memory_bytes=0.0)
    p, steps, reports = profile, params.steps, job.report_steps(params)
    measured = reports * p.examples / p.batch * p.forward_share
    update = p.parameters * (3 if params.optimiser == "sgd" else 12)

    def launches(device: str) -> float:
        blocks = math.ceil(models / models_stacked(job, params, device))
        passes = math.ceil(p.examples / evaluated_rows(math.ceil(models / blocks), p.row_bytes, p.batch, device)) + 1
        return float(blocks * (steps * (p.launches + _OPTIMISER_LAUNCHES) + reports * passes * p.launches))

    return Cost(
        launches=launches("cpu"),
        gpu_launches=launches("cuda"),
        matmul_flop=models * p.flop * (steps + measured),
        element_visits=models * (2 * p.elements * (steps + measured) + steps * update),
        memory_bytes=memory_bytes(job, params, models, "cpu"),
        steps=steps,
        reports=reports,
        at_most=params.stop_accuracy > 0,
    )
