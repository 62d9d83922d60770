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
SPECIAL_TOKENS = ("=", "op", "end")
"""Tokens besides the elements, in the order of their numbers; a sequence uses the first ones of them."""
SEQUENCES = {
    "short": ("x", "y", "="),
    "operator": ("x", "op", "y", "="),
    "equation": ("end", "x", "op", "y", "=", "z"),
}
"""The parameter `sequence` -> the tokens that the transformer reads; z is the answer."""
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
    matmul_precision: str = fields.matmul_precision()
    curve_until: int = fields.curve_until()
    batch_fraction: float = _added(
        1.0, above=0, high=1, meaning="largest share of the train set in a batch (Power et al.: batch_size 512 and 0.5)"
    )
    activation: str = _added("relu", choices=("relu", "tanh", "gelu"), meaning="of the hidden layers")
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
        choices=("none", "layers", "whole", "layers_rescaled"),
        meaning="remove the gradient's component along the weights (Prieto et al. 2025), per layer or as a whole;"
        " layers_rescaled: per layer, and restore its norm",
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
    biases: bool = _added(True, meaning="whether the layers of a perceptron, a transformer's too, have trained biases")
    complexity_radius: float = _added(
        0.05, above=0, high=1e6, meaning="distance of local complexity's vertices from a point (progress)"
    )
    complexity_directions: int = _added(
        25, low=1, high=4096, meaning="orthonormal directions of local complexity, two vertices each"
    )
    complexity_points: int = _added(
        100, low=1, high=100_000, meaning="points of the train set, and of the test set, that local complexity averages"
    )
    init: str = _added(
        "scaled",
        choices=("scaled", "torch", "nanda", "liu"),
        meaning="initial weights: normal by fan in (scaled), PyTorch's defaults (torch), or those of Nanda et al. 2023"
        " (transformer) or Liu et al. 2022 (embedding_mlp); see jobs/grokking/initial.py",
    )
    class_mean: bool = _added(
        False, meaning="average the loss over the outputs too (the squared loss is then that of torch.nn.MSELoss)"
    )
    count_rounding: str = _added(
        "nearest", choices=("nearest", "down"), meaning="how the number of training examples is rounded"
    )
    noise_count: str = _added(
        "random",
        choices=("random", "exact"),
        meaning="label_noise is a probability, or the exact share of the training labels, rounded down",
    )
    warmup_from_zero: bool = _added(
        False, meaning="start the warm-up with a step of learning rate 0 (adam, adamw), as Power and Nanda et al. do"
    )
    last_batch: str = _added(
        "filled",
        choices=("filled", "smaller"),
        meaning="the last batch of an epoch is filled from the next epoch, or smaller (Power, Lee et al.)",
    )
    sequence: str = _added(
        "short",
        choices=tuple(SEQUENCES),
        meaning="tokens of the transformer: x y = (short); x op y = (operator); or end x op y = z, with a loss over the"
        " answer and the end (equation, Power et al.)",
    )
    vocabulary: int = _added(
        0, unit="tokens", low=0, high=10_000, meaning="tokens of the transformer, all of them outputs; 0: results only"
    )
    positions: str = _added(
        "learned", choices=("learned", "sinusoidal"), meaning="position embeddings of the transformer"
    )
    attention_biases: bool = _added(False, meaning="whether the transformer's attention has biases")
    norm_order: str = _added(
        "post",
        choices=("post", "grokfast"),
        meaning="layer norm after each sublayer, or before it and before the readout, where attention's residual starts"
        " from the normalised input (Lee et al. 2024)",
    )
    train_level: float = _added(
        0.0,
        low=0,
        high=1,
        meaning="training accuracy whose first step at or above is found exactly; 0: it lies between two reports",
    )
    test_level: float = _added(0.0, low=0, high=1, meaning="the same of the test accuracy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "transformer":
            self._check_transformer()
        else:
            self._check_other_models()
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

    def _check_transformer(self) -> None:
        if self.width % self.heads:
            raise ParamError("heads", f"must divide width ({self.width})", self.heads)
        if self.init == "liu":
            raise ParamError("init", "liu is for embedding_mlp", self.init, ("scaled", "torch", "nanda"))
        if self.vocabulary and self.vocabulary < max(self._used_tokens, self.results):
            rule = f"must be 0, or at least {max(self._used_tokens, self.results)}, the tokens in use"
            raise ParamError("vocabulary", rule, self.vocabulary)
        if self.norm_order != "post" and not self.layer_norm:
            raise ParamError("norm_order", "needs layer_norm", self.norm_order, ("post",))
        if self.sequence == "equation":
            if not self.vocabulary or self.results > self.elements:
                rule = "the answer must be a token: needs a vocabulary, and an operation whose results are elements"
                raise ParamError("sequence", rule, self.sequence, ("short", "operator"))
            if self.label_noise:
                raise ParamError("label_noise", "must be 0 where the sequence contains the answer", self.label_noise)
            if self.progress == "fourier":
                raise ParamError("progress", "fourier reads one position", self.progress, ("none", "basic"))

    def _check_other_models(self) -> None:
        for name in _TRANSFORMER_ONLY:
            if getattr(self, name) != specs(GrokkingParams)[name].default:
                raise ParamError("model", f"{name} needs a transformer", self.model, ("transformer",))
        if self.init == "nanda":
            raise ParamError("init", "nanda is for transformers", self.init, ("scaled", "torch"))
        if self.init == "liu" and not (self.model == "embedding_mlp" and self.embedding):
            raise ParamError("init", "liu needs embedding_mlp with an embedding", self.init, ("scaled", "torch"))

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
    def results(self) -> int:
        """Possible results of the operation, or classes of the images."""
        return digits.CLASSES if self.images else result_count(self.operation, self.modulus)

    @property
    def outputs(self) -> int:
        """Network outputs: the possible results, or all tokens of the vocabulary."""
        return self.vocabulary or self.results

    @property
    def loss_factor(self) -> float:
        """Factor on the loss of a row, which is half the squared distance, or -log of the label's probability."""
        return (2 if self.loss == "squared" else 1) / self.outputs if self.class_mean else 1.0

    @property
    def _used_tokens(self) -> int:
        names = SEQUENCES[self.sequence]
        return self.elements + sum(name in names for name in SPECIAL_TOKENS)

    @property
    def tokens(self) -> int:
        """Rows of the transformer's token table."""
        return self.vocabulary or self._used_tokens

    @property
    def sequence_length(self) -> int:
        """Tokens that the transformer reads."""
        return len(SEQUENCES[self.sequence])

    @property
    def read_positions(self) -> int:
        """Positions of the transformer that are in the loss."""
        return 2 if self.sequence == "equation" else 1

    @property
    def input_rows(self) -> int:
        """Different inputs of the transformer's first block: tokens at positions."""
        return sum(1 if name in SPECIAL_TOKENS else self.elements for name in SEQUENCES[self.sequence])

    @property
    def final_norm(self) -> bool:
        """Whether a layer norm precedes the transformer's readout."""
        return self.norm_order == "grokfast"

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
        share = self.data_fraction * self.table_size
        return min(max(1, int(share) if self.count_rounding == "down" else round(share)), self.table_size - 1)

    @property
    def batch(self) -> int:
        """Pairs per step."""
        most = math.ceil(self.batch_fraction * self.train_pairs)
        return min(self.batch_size or most, most)

    @property
    def levels(self) -> int:
        """Levels whose first step is found exactly."""
        return bool(self.train_level) + bool(self.test_level)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The measured curves."""
        return BASE_METRICS + PROGRESS[self.progress]


_ADAM_ONLY = (
    "embedding_learning_rate",
    "decay_embedding",
    "perp_grad",
    "grokfast_lambda",
    "epsilon",
    "warmup_from_zero",
)
_TRANSFORMER_ONLY = ("sequence", "vocabulary", "positions", "attention_biases", "norm_order")


@dataclass(frozen=True, kw_only=True)
class GrokkingThresholds(Params):
    """Where one phase ends and the next begins (Liu et al. 2022, Table 1)."""

    memorised_accuracy: float = param(0.9, above=0, high=1, meaning="train accuracy that counts as memorised")
    generalised_accuracy: float = param(0.9, above=0, high=1, meaning="test accuracy that counts as generalised")
    grokking_gap: float = param(
        1000, unit="steps", above=0, meaning="steps from memorisation to generalisation from which on it is grokking"
    )
