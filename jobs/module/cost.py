"""What a pack of modules costs, counted in one step of one module.

The first setting of a kind is counted: one training step and one forward pass, on the CPU. Of further settings the
module alone is made, and the counts are scaled by its number of parameters: a sweep may have hundreds of widths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from jobs.job import Cost, Member, log_spaced_steps
from jobs.module.base import ModuleScience
from jobs.module.data import Random, tensors_of
from jobs.module.network import Network, OneNetwork
from jobs.packed import random
from jobs.packed.cost import evaluation_bytes
from jobs.packed.memory import drawn_bytes, longest_gap
from jobs.packed.storages import PeakMemory

_MOST_COUNTED = 8
"""Settings of one job that are counted; those of further ones are scaled."""
_OPTIMISER_LAUNCHES = 25
CHUNK_STEPS = 64
"""Steps whose batches are drawn at once."""
EVALUATION_BYTES = 1 << 23
"""Activations held at once while measuring on a CPU: with few rows, a batched product costs more a row."""
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
    one = OneNetwork(job=job, params=params, module=network.module, trained=tuple(network.trained), fixed=())
    y, mask = data.train[1][:batch], data.train[2][:batch] if len(data.train) == 3 else None
    forward, whole = _Counter(), _Counter()
    inputs = x[0] if isinstance(data.train[0], Tensor) else x
    key, step = random.stream_keys([0], "module")[0], torch.zeros((), dtype=torch.int64)
    leaves = [p for p in network.module.parameters() if p.requires_grad]
    step_bytes, measuring = PeakMemory(), PeakMemory()
    own = [*network.trained.values(), *network.fixed.values(), *x, y, key, step, *(() if mask is None else (mask,))]
    for tensor in own:
        step_bytes.storages.add(tensor)
        measuring.storages.add(tensor)
    before = step_bytes.storages.live
    with step_bytes, whole:
        with forward:
            loss = one.batch_loss((), (), inputs, y, mask, key, step)
        torch.autograd.grad(loss, leaves, allow_unused=True)
    network.module.eval()
    with torch.no_grad(), measuring:
        one.sums((), (), inputs, y, mask)
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
        step_bytes=float(step_bytes.storages.peak - before),
        measured_bytes=(measuring.storages.peak - before) / batch,
    )


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


def memory_bytes(job: ModuleScience, params: Any, models: int, device: str) -> float:
    """Peak bytes of a pack whose models are stacked, each on data of its own; 0 where the user's code fails here."""
    try:
        p = profile_of(job, params)
    except Exception:
        return 0.0
    cpu = device.startswith("cpu")
    stacked = min(models, models_stacked(job, params, device))
    state = 4.0 * p.parameters * (2 if params.optimiser == "sgd" else 4) + p.network_bytes - 4.0 * p.parameters
    # The networks and the data are made on the host.
    held = models * (p.data_bytes + state + cpu * (p.data_bytes + p.network_bytes))
    gap = longest_gap(log_spaced_steps(params.steps, params.curve_points))
    drawing = rows = 0.0
    if not job.defines("batch"):
        drawing, rows = drawn_bytes(
            stacked,
            steps=min(CHUNK_STEPS, gap),
            horizon=params.steps,
            batch=p.batch,
            used=p.training,
            order=params.batch_order,
        )
    row = p.data_bytes / p.examples
    step = stacked * (p.step_bytes + 2 * p.batch * row)
    piece = min(stacked * p.examples, evaluation_bytes(EVALUATION_BYTES, device) / p.row_bytes)
    kept = rows if gap > CHUNK_STEPS else 0.0
    return held + max(drawing + kept, rows + step, piece * (p.measured_bytes + row))


def pack_cost(job: ModuleScience, params: Any, models: int) -> Cost:
    """The cost of a pack of `models` trials; zero, which means unknown, where the user's code fails here."""
    try:
        profile = profile_of(job, params)
    except Exception:  # the user's code: the rehearsal says what it raises, with the trial
        return Cost(launches=0.0, matmul_flop=0.0, element_visits=0.0, memory_bytes=0.0)
    p, steps, reports = profile, params.steps, job.report_steps(params)
    blocks = math.ceil(models / models_stacked(job, params, "cpu"))
    measured = reports * p.examples / p.batch * p.forward_share
    update = p.parameters * (3 if params.optimiser == "sgd" else 12)
    passes = math.ceil(models / blocks * p.examples * p.row_bytes / EVALUATION_BYTES) + 1
    return Cost(
        launches=blocks * (steps * (p.launches + _OPTIMISER_LAUNCHES) + reports * passes * p.launches),
        matmul_flop=models * p.flop * (steps + measured),
        element_visits=models * (2 * p.elements * (steps + measured) + steps * update),
        memory_bytes=memory_bytes(job, params, models, "cpu"),
        steps=steps,
        reports=reports,
        at_most=params.stop_accuracy > 0,
    )
