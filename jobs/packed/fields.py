"""Parameter fields that several jobs declare. No torch here.

Each is `jobs.job.param` with some arguments set; the call adds the rest: `beta2: float = fields.beta2(0.98)`.
"""

from __future__ import annotations

from functools import partial

from jobs.job import param

curve_points = partial(param, low=2, high=320, meaning="log-spaced steps at which the curves are measured")
curve_until = partial(
    param,
    0,
    unit="steps",
    low=0,
    high=100_000_000,
    added=True,
    meaning="curve_points lie between 1 and this step, and go on with their spacing beyond it; 0: the last step",
)
steps = partial(param, unit="steps", low=1, high=100_000_000)
epochs = partial(
    param, 0, unit="epochs", low=0, high=10_000_000, meaning="passes over the training data; 0: use the parameter steps"
)
init_scale = partial(param, 1.0, above=0, high=1e3, meaning="factor on the initial weights and biases")
label_noise = partial(param, 0.0, low=0, high=1, meaning="probability that a training label is replaced")
NOISE_CONVENTIONS = ("redrawn", "incorrect")
noise_convention = partial(
    param,
    choices=NOISE_CONVENTIONS,
    meaning="a replaced label is one of all classes, or one of the wrong ones",
)
data_seed = partial(
    param,
    0,
    low=-1,
    high=(1 << 32) - 1,
    added=True,
    meaning="which data set is generated: 0: MNIST-1D as published, Gaussian data of each replicate's own; -1: each"
    " replicate's own; otherwise the same one for all replicates, drawn with this seed",
)
"""Of generated data. Subsets, label noise, batches and initial weights are each replicate's own in any case."""
optimiser = partial(param, choices=("sgd", "adam", "adamw"), meaning="optimiser")
learning_rate = partial(param, unit="1/step", above=0, high=100)
momentum = partial(param, low=0, below=1, meaning="momentum (sgd)")
beta1 = partial(param, 0.9, low=0, below=1, meaning="decay of the first moment (adam, adamw)")
beta2 = partial(param, low=0, below=1, meaning="decay of the second moment (adam, adamw)")
weight_decay = partial(param, 0.0, low=0, high=1e3, meaning="L2 term in the gradient (sgd, adam), or decoupled (adamw)")
matmul_precision = partial(
    param,
    "fp32",
    choices=("fp32", "tf32", "bf16"),
    added=True,
    meaning="to which the operands of a training step's matrix products and convolutions are rounded; everything else"
    " is float32. Where a device has no such products, they are rounded before the product",
)
prominence = partial(
    param,
    0.01,
    low=0,
    meaning="of the peak of a single trial's curve, which only a search for one uses; other peaks are in `analysis:`",
)
"""In a job's thresholds, so that sweep files and records of earlier versions stay valid."""


def hides_denormals(kind: str, epsilon: float) -> bool:
    """Whether a step is the same if numbers below the smallest normal one, 1.2e-38, are treated as zero.

    Adam divides by sqrt(second moment) + epsilon. The root of a moment below 1.2e-38 is below 1.1e-19, times at most
    32 by the correction of the first steps; an epsilon of 1e-11 exceeds that beyond the precision of float32. With the
    epsilon of 1e-25 of Prieto et al. (2025) the step would be 10^6 times too long.
    """
    return kind == "sgd" or epsilon >= 1e-11
