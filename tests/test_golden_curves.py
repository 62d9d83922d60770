"""Short curves on the CPU equal the stored ones: a refactoring does not change results."""

import json

import numpy as np
import pytest

from jobs.catalogue import load_job
from tests.golden.trials import FOLDER, TRIALS, curve


@pytest.mark.parametrize("name", TRIALS)
def test_a_short_curve_is_the_one_that_was_kept(name: str) -> None:
    """Processors round differently: within 0.1% of a loss, and two examples in a thousand of an error."""
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    now = curve(name)
    assert now.step.tolist() == kept["step"]
    assert set(now.values) == set(kept["values"])
    for metric, values in kept["values"].items():
        rough = metric.endswith(("error", "accuracy"))
        np.testing.assert_allclose(
            now.values[metric], values, rtol=2e-3 if rough else 1e-3, atol=1e-2 if rough else 1e-5, err_msg=metric
        )


def test_every_built_in_job_is_guarded() -> None:
    from jobs.catalogue import BUILT_IN

    trained = {job for job, _ in TRIALS.values()}
    assert trained >= {name for name in BUILT_IN if getattr(load_job(name), "needs_torch", True)} - {"ridge"}
