"""Short trainings whose curves are kept: a change of the packed code that moves them is seen.

`python -m tests.golden.trials NAME...` writes the curves of these trials anew (all, without names). A change that is
meant must raise the job's `version`, for recorded trials are found by it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jobs.catalogue import load_job
from jobs.job import Curves, Member

FOLDER = Path(__file__).parent
TRIALS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp-sgd": ("double_descent", {"width": 40, "label_noise": 0.15, "steps": 60, "curve_points": 8}),
    "mlp-adam-subset": (
        "double_descent",
        {
            "width": 24,
            "depth": 1,
            "sample_count": 500,
            "optimiser": "adam",
            "learning_rate": 1e-3,
            "steps": 40,
            "curve_points": 8,
            "loss": "squared",
            "label_noise": 0.2,
            "noise_convention": "incorrect",
        },
    ),
    "linear-gaussian": (
        "double_descent",
        {
            "data": "gaussian_linear",
            "depth": 0,
            "inputs": 30,
            "pool": 60,
            "loss": "squared",
            "noise_std": 0.5,
            "batch_size": 0,
            "momentum": 0.0,
            "learning_rate": 0.1,
            "steps": 60,
            "curve_points": 8,
        },
    ),
    "grokking-quadratic": (
        "grokking",
        {
            "model": "quadratic_mlp",
            "modulus": 13,
            "width": 64,
            "learning_rate": 0.01,
            "weight_decay": 1.0,
            "data_fraction": 0.6,
            "steps": 80,
            "curve_points": 10,
        },
    ),
    "grokking-mlp": (
        "grokking",
        {
            "model": "embedding_mlp",
            "modulus": 11,
            "width": 32,
            "learning_rate": 1e-3,
            "weight_decay": 0.5,
            "data_fraction": 0.5,
            "steps": 60,
            "curve_points": 8,
        },
    ),
    "grokking-transformer": (
        "grokking",
        {
            "model": "transformer",
            "modulus": 11,
            "width": 32,
            "learning_rate": 1e-3,
            "weight_decay": 1.0,
            "data_fraction": 0.5,
            "steps": 40,
            "curve_points": 8,
        },
    ),
    "cnn-1d": (
        "image_double_descent",
        {
            "data": "mnist1d",
            "model": "cnn_1d",
            "augment": False,
            "width": 6,
            "label_noise": 0.15,
            "noise_convention": "redrawn",
            "optimiser": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.9,
            "batch_size": 100,
            "steps": 40,
            "curve_points": 8,
        },
    ),
}
"""Name -> job and parameters; replicates 0 with seed 12345."""


def curve(name: str) -> Curves:
    """Train one of these trials, alone, in one thread."""
    import torch

    job_name, values = TRIALS[name]
    job = load_job(job_name)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps: list[int] = []
        rows: list[dict[str, float]] = []
        for report in job.train([Member(params=job.params_for(values), seed=12345)], device="cpu"):
            if not len(report.members):
                continue
            steps.append(report.step)
            rows.append({metric: float(value[0]) for metric, value in report.values.items()})
    finally:
        torch.set_num_threads(before)
    import numpy as np

    return Curves(step=np.array(steps), values={metric: np.array([row[metric] for row in rows]) for metric in rows[0]})


def write(name: str) -> None:
    """Keep the curve as it is now."""
    found = curve(name)
    content = {"step": found.step.tolist(), "values": {metric: v.tolist() for metric, v in found.values.items()}}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or TRIALS:
        write(chosen)
