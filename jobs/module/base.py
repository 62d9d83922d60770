"""What a user's module job gives: parameters, module, data, loss.

Shapes: B examples of a batch, T tokens of an example, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jobs.job import AnyParams, Job, as_dict, log_spaced_steps
from jobs.module.data import Data, Random
from jobs.module.params import ModuleParams

_PER_MODEL = {
    "learning_rate",
    "weight_decay",
    "momentum",
    "beta1",
    "beta2",
    "clip_norm",
    "label_noise",
    "steps",
    "curve_points",
}
"""Parameters of every module job in which the models of a pack may differ."""

_FEW_CLASSES = 16
"""On a CPU, PyTorch's softmax over a shorter last dimension is not vectorised: of 10 classes it takes six times as long
as over another dimension."""


class ModuleScience(Job[Any]):
    """The part of `jobs.module.ModuleJob` that a user defines, and which trials it lets share a pack."""

    Params: ClassVar[type[AnyParams]] = ModuleParams
    data_only: ClassVar[tuple[str, ...]] = ()
    """Own parameters that nothing but `data` reads: trials that differ in them share a pack."""

    @abstractmethod
    def model(self, params: Any) -> nn.Module:
        """The module before training. It is made under the trial's seed, with PyTorch's own generator."""

    @abstractmethod
    def data(self, params: Any, random: Random) -> Data:
        """The examples of a trial; what is drawn from `random` is the trial's own."""

    def loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        """The loss of each example (B,), or of each token (B, T), of one model.

        By default the cross-entropy where targets are integers, with classes in the last dimension of the output, and
        otherwise the squared difference, averaged over all dimensions but the first.
        """
        if target.dtype.is_floating_point:
            squares: Tensor = (output.reshape(target.shape) - target).square()
            return squares.reshape(len(squares), -1).mean(1)
        return _cross_entropy(output, target)

    def training_loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        """What training decreases, of each example or token, where it is not `loss` (label smoothing, for example).

        `train_loss` and `test_loss` are of `loss` in any case.
        """
        return self.loss(params, output, target)

    def right(self, params: Any, output: Any, target: Tensor) -> Tensor | None:
        """Whether each example (B,) or token (B, T) is predicted, for the accuracy; None: there is no accuracy."""
        if target.dtype.is_floating_point:
            return None
        right: Tensor = output.max(-1).indices == target  # as argmax, which is slow for few classes
        return right

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Any, ...]:
        """Fresh training examples of one step, (inputs, targets) or (inputs, targets, mask), drawn from `random`.

        Where it is defined, no batches are drawn from `data`, whose training part is then only measured.
        """
        raise NotImplementedError

    def regulariser(self, params: Any, weights: Mapping[str, Tensor]) -> Tensor | None:
        """What is added to the training loss of a model with these parameters by name; not part of `train_loss`."""
        return None

    def weight_masks(self, params: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Name of a parameter -> mask of its shape, from the initial parameters; it is multiplied by the mask before
        training and after every step (pruning).
        """
        return {}

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """Further metrics at the report steps: name -> a number, of one model with these parameters."""
        return {}

    def torch_optimiser(self, params: Any, weights: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """An optimiser of PyTorch instead of the parameter `optimiser`; models then train one at a time."""
        return None

    def defines(self, name: str) -> bool:
        """Whether the job has a method of its own in place of an optional one."""
        return getattr(type(self), name) is not getattr(ModuleScience, name)

    def pack_key(self, params: Any) -> Hashable:
        varies = _PER_MODEL.union(self.data_only)
        shared = tuple(value for name, value in as_dict(params).items() if name not in varies)
        horizon = (params.steps,) if params.schedule in ("cosine", "step") else ()
        return (*shared, *horizon)

    def schedule(self, params: Any) -> NDArray[np.int64]:
        return log_spaced_steps(params.steps, params.curve_points)

    def shortened(self, params: Any, *, steps: int, reports: int) -> Any:
        if steps <= params.warmup_steps:
            return None
        return super().shortened(params, steps=steps, reports=reports)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """As `functional.cross_entropy` without reduction, with the classes last."""
    if output.device.type == "cpu" and output.shape[-1] < _FEW_CLASSES:
        log_p = functional.log_softmax(output.transpose(-1, -2).contiguous(), -2)
        return -torch.gather(log_p, -2, target.unsqueeze(-2)).squeeze(-2)
    log_p = functional.log_softmax(output, -1)
    return -torch.gather(log_p, -1, target.unsqueeze(-1)).squeeze(-1)
