"""What a grokking trial may be: the task, the network, the training and the measured curves; and its thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from jobs.grokking import digits
from jobs.grokking.modular import OPERATIONS, pair_count, result_count, set_size
from jobs.job import ParamError, Params, param, specs
from jobs.packed import fields

MODELS = ("quadratic_mlp", "embedding_mlp", "transformer")
"""Networks that learn a binary operation; images are learned by image_mlp."""
PERCEPTRONS = ("embedding_mlp", "image_mlp")
"""Networks of hidden layers with a choice of activation."""
TASKS = (*OPERATIONS, *digits.SOURCES)
FOURIER_OPERATIONS = ("add", "subtract")
"""Operations for which the ablations of frequencies of Nanda et al. are defined."""
BASE_METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "weight_norm")
BASIC_METRICS = ("logit_margin", "gradient_norm")
FOURIER_METRICS = ("fourier_gini", "fourier_top_share", "restricted_loss", "excluded_loss")
COMPLEXITY_METRICS = ("train_complexity", "test_complexity")
PROGRESS = {
    "none": (),
    "basic": BASIC_METRICS,
    "fourier": BASIC_METRICS + FOURIER_METRICS,
    "complexity": BASIC_METRICS + COMPLEXITY_METRICS,
}
"""The parameter `progress` -> the curves that it adds."""
_added = partial(param, added=True)


@dataclass(frozen=True, kw_only=True)
class GrokkingParams(Params):
    """What one network learns, and how."""

    operation: str = param("add", choices=TASKS, meaning="binary operation (jobs/grokking/modular.py), or images")
    modulus: int = param(97, low=2, high=1000, meaning="p: the operation works on 0..p-1 (120 elements for s5)")
    data_fraction: float = param(0.5, above=0, below=1, meaning="share of the table that is trained on")
    label_noise: float = fields.label_noise()
    noise_convention: str = fields.noise_convention("redrawn")
    model: str = param("quadratic_mlp", choices=(*MODELS, "image_mlp"), meaning="architecture (image_mlp for images)")
    width: int = param(
        128, unit="units", low=1, high=16_384, meaning="hidden units, or the transformer's residual width"
    )
    embedding: int = param(
        128, unit="units", low=0, high=4096, meaning="embedding size (embedding_mlp); 0: one-hot inputs"
    )
    layers: int = param(1, unit="layers", low=1, high=4, meaning="transformer blocks, or hidden layers of a perceptron")
    heads: int = param(4, low=1, high=64, meaning="attention heads (transformer); must divide width")
    layer_norm: bool = param(False, meaning="layer norm after each sublayer (transformer)")
    init_scale: float = fields.init_scale(
        meaning="factor on the initial weights (quadratic_mlp: standard deviation 0.5 / (2 width)^(1/3) times this)"
    )
    loss: str = param("squared", choices=("squared", "cross_entropy", "stablemax"), meaning="training loss")
    optimiser: str = fields.optimiser("adamw")
    learning_rate: float = fields.learning_rate(0.01, meaning="learning rate after warm-up")
    warmup_steps: int = param(0, unit="steps", low=0, high=1_000_000, meaning="linear warm-up of the learning rate")
    weight_decay: float = fields.weight_decay()
    momentum: float = fields.momentum(0.0)
    beta1: float = fields.beta1()
    beta2: float = fields.beta2(0.98)
    batch_size: int = param(
        0, unit="pairs", low=0, high=1_000_000, meaning="pairs per step, drawn epoch by epoch; 0: full batch"
    )
    steps: int = fields.steps(10_000, meaning="optimiser steps")
    stop_accuracy: float = param(
        0.0, low=0, high=1, meaning="end a trial once train and test accuracy are both at least this; 0: never"
    )
    curve_points: int = fields.curve_points(150)
    batch_fraction: float = _added(
        1.0, above=0, high=1, meaning="largest share of the train set in a batch (Power et al.: batch_size 512 and 0.5)"
    )
    activation: str = _added("relu", choices=("relu", "tanh"), meaning="of the hidden layers of a perceptron")
    combine: str = _added(
        "concatenate", choices=("concatenate", "sum"), meaning="how embedding_mlp combines the two embeddings"
    )
    embedding_scale: float = _added(1.0, above=0, high=1e3, meaning="a further factor on the initial embedding")
    embedding_learning_rate: float = _added(
        0.0, unit="1/step", low=0, high=100, meaning="learning rate of the embedding (adam, adamw); 0: learning_rate"
    )
    decay_embedding: bool = _added(True, meaning="whether weight decay acts on the embedding (adam, adamw)")
    perp_grad: str = _added(
        "none",
        choices=("none", "layers", "whole"),
        meaning="remove the gradient's component along the weights (Prieto et al. 2025), per layer or as a whole",
    )
    grokfast_lambda: float = _added(
        0.0, low=0, high=1e3, meaning="weight of the gradient's moving average (Grokfast; adam, adamw); 0: off"
    )
    grokfast_alpha: float = _added(0.98, low=0, below=1, meaning="decay of that moving average")
    progress: str = _added(
        "none",
        choices=tuple(PROGRESS),
        meaning="further curves: margin and gradient norm (basic); also the embedding's spectrum and the losses of"
        " Nanda et al. (fourier), or local complexity (complexity; ReLU perceptrons)",
    )
    archive: str = _added("", meaning="folder of the MNIST files; empty: the standard ones")
    epsilon: float = _added(1e-8, above=0, high=1, meaning="added to Adam's denominator (Prieto et al. use 1e-25)")
    loss_precision: int = _added(
        32, unit="bits", choices=(32, 64), meaning="precision of the training loss, computed from the outputs"
    )
    biases: bool = _added(True, meaning="whether the layers of a perceptron have trained biases")
    complexity_radius: float = _added(
        0.05, above=0, high=1e6, meaning="distance of local complexity's vertices from a point (progress)"
    )
    complexity_directions: int = _added(
        25, low=1, high=4096, meaning="orthonormal directions of local complexity, two vertices each"
    )
    complexity_points: int = _added(
        100, low=1, high=100_000, meaning="points of the train set, and of the test set, that local complexity averages"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "transformer" and self.width % self.heads:
            raise ParamError("heads", f"must divide width ({self.width})", self.heads)
        if self.model == "image_mlp" and not self.images:
            raise ParamError("operation", "image_mlp learns images", self.operation, tuple(digits.SOURCES))
        if self.images and self.model != "image_mlp":
            raise ParamError("model", f"must be image_mlp to learn {self.operation}", self.model, ("image_mlp",))
        if self.progress == "fourier" and self.operation not in FOURIER_OPERATIONS:
            rule = f"fourier is not defined for {self.operation}, only for {' and '.join(FOURIER_OPERATIONS)}"
            raise ParamError("progress", rule, self.progress, ("none", "basic"))
        if self.progress == "complexity":
            self._check_complexity()
        if self.optimiser == "sgd":
            for name in _ADAM_ONLY:
                if getattr(self, name) != specs(GrokkingParams)[name].default:
                    raise ParamError("optimiser", f"{name} needs adamw or adam", self.optimiser, ("adamw", "adam"))

    def _check_complexity(self) -> None:
        others = ("none", "basic", *(("fourier",) if self.operation in FOURIER_OPERATIONS else ()))
        if self.model not in PERCEPTRONS:
            rule = f"complexity counts ReLU units of perceptrons ({', '.join(PERCEPTRONS)}), not {self.model}"
            raise ParamError("progress", rule, self.progress, others)
        if self.activation != "relu":
            rule = f"complexity counts ReLU units, and the activation is {self.activation}"
            raise ParamError("progress", rule, self.progress, others)
        if self.complexity_directions > self.first_inputs:
            rule = f"must be at most the first layer's inputs ({self.first_inputs}), to be orthogonal"
            raise ParamError("complexity_directions", rule, self.complexity_directions)

    @property
    def images(self) -> bool:
        """Whether the task is image classification."""
        return self.operation in digits.SOURCES

    @property
    def pixels(self) -> int:
        """Pixels of an image; 0 for other tasks."""
        return digits.SOURCES[self.operation].inputs if self.images else 0

    @property
    def official_tests(self) -> int:
        """Images of the official test set; 0: all examples outside the train set are tested."""
        return digits.SOURCES[self.operation].test if self.images else 0

    @property
    def elements(self) -> int:
        """Elements of the set that the operation works on; of images, their number."""
        return self.table_size if self.images else set_size(self.operation, self.modulus)

    @property
    def outputs(self) -> int:
        """Network outputs: possible results of the operation, or classes of the images."""
        return digits.CLASSES if self.images else result_count(self.operation, self.modulus)

    @property
    def first_inputs(self) -> int:
        """Inputs of a perceptron's first layer, after the embeddings."""
        return self.pixels or (self.embedding or self.elements) * self.tables

    @property
    def tables(self) -> int:
        """First-layer matrices of a perceptron on pairs: one where the embeddings are added, else two."""
        return 1 if self.combine == "sum" else 2

    @property
    def table_size(self) -> int:
        """Examples that the train set is drawn from."""
        return digits.SOURCES[self.operation].train if self.images else pair_count(self.operation, self.modulus)

    @property
    def measured(self) -> int:
        """Train and test examples that a report measures."""
        return self.train_pairs + self.official_tests if self.official_tests else self.table_size

    @property
    def train_pairs(self) -> int:
        """Training pairs (or images): the fraction rounded, at least 1, and at least one left to test."""
        return min(max(1, round(self.data_fraction * self.table_size)), self.table_size - 1)

    @property
    def batch(self) -> int:
        """Pairs per step."""
        most = math.ceil(self.batch_fraction * self.train_pairs)
        return min(self.batch_size or most, most)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The measured curves."""
        return BASE_METRICS + PROGRESS[self.progress]


_ADAM_ONLY = ("embedding_learning_rate", "decay_embedding", "perp_grad", "grokfast_lambda", "epsilon")


@dataclass(frozen=True, kw_only=True)
class GrokkingThresholds(Params):
    """Where one phase ends and the next begins (Liu et al. 2022, Table 1)."""

    memorised_accuracy: float = param(0.9, above=0, high=1, meaning="train accuracy that counts as memorised")
    generalised_accuracy: float = param(0.9, above=0, high=1, meaning="test accuracy that counts as generalised")
    grokking_gap: float = param(
        1000, unit="steps", above=0, meaning="steps from memorisation to generalisation from which on it is grokking"
    )
