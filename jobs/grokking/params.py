"""What a grokking trial may be: the task, the network, the training, and what is measured of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.grokking import digits
from jobs.grokking.modular import OPERATIONS, pair_count, result_count, set_size, share_of
from jobs.job import ParamError, Params, param

MODELS = ("quadratic_mlp", "embedding_mlp", "transformer")
"""Networks that learn a binary operation; images have one of their own, image_mlp."""
PERCEPTRONS = ("embedding_mlp", "image_mlp")
"""Networks of hidden layers with an activation of choice."""
TASKS = (*OPERATIONS, *digits.SOURCES)
FOURIER_OPERATIONS = ("add", "subtract")
"""Operations whose answer is a sum over characters of Z_p, so that Nanda's ablations of frequencies are defined."""
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


@dataclass(frozen=True, kw_only=True)
class GrokkingParams(Params):
    """What one network learns, and how. Parameters marked `added` came later; their default is what was before."""

    operation: str = param(
        "add", choices=TASKS, meaning="binary operation to learn (jobs/grokking/modular.py), or a set of images"
    )
    modulus: int = param(97, low=2, high=1000, meaning="p: the operation works on 0..p-1 (120 elements for s5)")
    data_fraction: float = param(0.5, above=0, below=1, meaning="share of the table that is trained on")
    label_noise: float = param(0.0, low=0, high=1, meaning="probability that a training label is replaced")
    noise_convention: str = param(
        "redrawn", choices=("redrawn", "incorrect"), meaning="a replaced label is one of all, or one of the wrong ones"
    )
    model: str = param("quadratic_mlp", choices=(*MODELS, "image_mlp"), meaning="architecture (image_mlp for images)")
    width: int = param(
        128,
        unit="units",
        low=1,
        high=16_384,
        meaning="hidden units (perceptrons), or the transformer's residual width",
    )
    embedding: int = param(
        128, unit="units", low=0, high=4096, meaning="embedding size (embedding_mlp); 0: one-hot inputs"
    )
    layers: int = param(
        1, unit="layers", low=1, high=4, meaning="transformer blocks, or hidden layers (embedding_mlp, image_mlp)"
    )
    heads: int = param(4, low=1, high=64, meaning="attention heads (transformer); must divide width")
    layer_norm: bool = param(False, meaning="layer norm after each sublayer (transformer)")
    init_scale: float = param(
        1.0,
        above=0,
        high=1e3,
        meaning="factor on the initial weights (quadratic_mlp: standard deviation 0.5 / (2 width)^(1/3) times this)",
    )
    loss: str = param("squared", choices=("squared", "cross_entropy", "stablemax"), meaning="training loss")
    optimiser: str = param("adamw", choices=("adamw", "adam", "sgd"), meaning="optimiser")
    learning_rate: float = param(0.01, unit="1/step", above=0, high=100, meaning="learning rate after warm-up")
    warmup_steps: int = param(0, unit="steps", low=0, high=1_000_000, meaning="linear warm-up of the learning rate")
    weight_decay: float = param(
        0.0, low=0, high=1e3, meaning="decoupled (adamw), or L2 term in the gradient (adam, sgd)"
    )
    momentum: float = param(0.0, low=0, below=1, meaning="momentum (sgd)")
    beta1: float = param(0.9, low=0, below=1, meaning="decay of the first moment (adam, adamw)")
    beta2: float = param(0.98, low=0, below=1, meaning="decay of the second moment (adam, adamw)")
    batch_size: int = param(
        0, unit="pairs", low=0, high=1_000_000, meaning="pairs a step, drawn epoch by epoch; 0: full batch"
    )
    steps: int = param(10_000, unit="steps", low=1, high=100_000_000, meaning="optimiser steps")
    stop_accuracy: float = param(
        0.0,
        low=0,
        high=1,
        meaning="end a trial once train and test accuracy are both at least this (it has generalised); 0: never",
    )
    curve_points: int = param(150, low=2, high=320, meaning="log-spaced steps at which the curves are measured")
    batch_fraction: float = param(
        1.0,
        above=0,
        high=1,
        added=True,
        meaning="most of the train set that a batch holds, rounded up (Power: batch_size 512 and 0.5)",
    )
    activation: str = param(
        "relu", choices=("relu", "tanh"), added=True, meaning="of the hidden layers (embedding_mlp, image_mlp)"
    )
    combine: str = param(
        "concatenate",
        choices=("concatenate", "sum"),
        added=True,
        meaning="how the two embeddings enter (embedding_mlp); Liu's toy has their sum",
    )
    embedding_scale: float = param(
        1.0, above=0, high=1e3, added=True, meaning="a further factor on the initial embedding"
    )
    embedding_learning_rate: float = param(
        0.0,
        unit="1/step",
        low=0,
        high=100,
        added=True,
        meaning="learning rate of the embedding (adam, adamw); 0: the same as of all else",
    )
    decay_embedding: bool = param(True, added=True, meaning="weight decay acts on the embedding too (adam, adamw)")
    perp_grad: str = param(
        "none",
        choices=("none", "layers", "whole"),
        added=True,
        meaning="take the part along the weights out of the gradient (Prieto et al. 2025), layer by layer or of all",
    )
    grokfast_lambda: float = param(
        0.0,
        low=0,
        high=1e3,
        added=True,
        meaning="weight of the gradient's moving average that is added to it (Grokfast, adam and adamw); 0: off",
    )
    grokfast_alpha: float = param(0.98, low=0, below=1, added=True, meaning="decay of that moving average")
    progress: str = param(
        "none",
        choices=tuple(PROGRESS),
        added=True,
        meaning="more curves: margin and gradient norm (basic); and the embedding's spectrum, Nanda's losses (fourier),"
        " or local complexity (complexity; ReLU perceptrons)",
    )
    archive: str = param("", added=True, meaning="folder of the MNIST files; empty: the standard ones")
    epsilon: float = param(
        1e-8, above=0, high=1, added=True, meaning="added to Adam's denominator (adam, adamw; Prieto et al. have 1e-25)"
    )
    loss_precision: int = param(
        32,
        unit="bits",
        choices=(32, 64),
        added=True,
        meaning="of the numbers that the training loss is computed in, from the outputs on",
    )
    biases: bool = param(
        True, added=True, meaning="whether layers and readout have a trained bias (embedding_mlp, image_mlp)"
    )
    complexity_radius: float = param(
        0.05, above=0, high=1e6, added=True, meaning="how far around a point local complexity looks (progress)"
    )
    complexity_directions: int = param(
        25,
        low=1,
        high=4096,
        added=True,
        meaning="orthonormal directions of local complexity, two vertices each; at most the network's inputs",
    )
    complexity_points: int = param(
        100,
        low=1,
        high=100_000,
        added=True,
        meaning="points of the train set, and as many of the test set, that local complexity is averaged over",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "transformer" and self.width % self.heads:
            raise ParamError("heads", f"must divide width ({self.width})", self.heads)
        if (self.operation in digits.SOURCES) != (self.model == "image_mlp"):
            if self.model == "image_mlp":
                raise ParamError("operation", "image_mlp learns images", self.operation, tuple(digits.SOURCES))
            raise ParamError("model", f"must be image_mlp to learn {self.operation}", self.model, ("image_mlp",))
        if self.progress == "fourier" and self.operation not in FOURIER_OPERATIONS:
            raise ParamError(
                "progress",
                f"fourier is not defined for {self.operation}, only for {' and '.join(FOURIER_OPERATIONS)}",
                self.progress,
                ("none", "basic"),
            )
        if self.progress == "complexity":
            self._check_complexity()
        if self.optimiser == "sgd":
            self._check_sgd()

    def _check_complexity(self) -> None:
        others = ("none", "basic", *(("fourier",) if self.operation in FOURIER_OPERATIONS else ()))
        if self.model not in PERCEPTRONS:
            rule = f"complexity counts ReLU units of perceptrons ({', '.join(PERCEPTRONS)}), and {self.model} is none"
            raise ParamError("progress", rule, self.progress, others)
        if self.activation != "relu":
            rule = f"complexity counts ReLU units, and the activation is {self.activation}"
            raise ParamError("progress", rule, self.progress, others)
        if self.complexity_directions > self.first_inputs:
            rule = f"so many directions are not orthogonal: the first layer has {self.first_inputs} inputs"
            raise ParamError("complexity_directions", rule, self.complexity_directions)

    def _check_sgd(self) -> None:
        changed = {
            "embedding_learning_rate": self.embedding_learning_rate != 0,
            "decay_embedding": not self.decay_embedding,
            "perp_grad": self.perp_grad != "none",
            "grokfast_lambda": self.grokfast_lambda != 0,
            "epsilon": self.epsilon != 1e-8,
        }
        for name, is_set in changed.items():
            if is_set:
                raise ParamError("optimiser", f"{name} needs adamw or adam", self.optimiser, ("adamw", "adam"))

    @property
    def images(self) -> bool:
        """Whether it learns images."""
        return self.operation in digits.SOURCES

    @property
    def elements(self) -> int:
        """Elements of the set that the operation works on."""
        return digits.pool(self.operation) if self.images else set_size(self.operation, self.modulus)

    @property
    def outputs(self) -> int:
        """Network outputs: results that the operation may have, or classes of the images."""
        return digits.CLASSES if self.images else result_count(self.operation, self.modulus)

    @property
    def first_inputs(self) -> int:
        """Inputs of a perceptron's first layer (behind the embeddings, where it has any)."""
        if self.images:
            return digits.SOURCES[self.operation].inputs
        return (self.embedding or self.elements) * (1 if self.combine == "sum" else 2)

    @property
    def table_size(self) -> int:
        """Examples that the train set is drawn from."""
        return digits.pool(self.operation) if self.images else pair_count(self.operation, self.modulus)

    @property
    def measured(self) -> int:
        """Examples that one report measures, about (train and test)."""
        held_out = digits.SOURCES[self.operation].test if self.images else 0
        return self.train_pairs + held_out if held_out else self.table_size

    @property
    def train_pairs(self) -> int:
        """Pairs (or images) trained on."""
        return share_of(self.table_size, self.data_fraction)

    @property
    def batch(self) -> int:
        """Pairs a step."""
        most = math.ceil(self.batch_fraction * self.train_pairs)
        return min(self.batch_size or most, most)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The curves that are measured."""
        return BASE_METRICS + PROGRESS[self.progress]
