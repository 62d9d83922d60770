"""The packed job against each protocol as its authors train it, at a size for two cores: the same distributions.

`python tests/protocols.py 40` compares more seeds, and prints the figures of configs/README.md.
"""

import numpy as np
import pytest
import torch
from protocols import LEARNING, MEASURES, PROTOCOLS, chance, described, of_the_authors, of_the_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEEDS = 24
LEVEL = 0.002
"""Of each comparison. Of simulated shifts of one measure by 1.5 standard deviations, 69 of 80 are found."""
LONG = ("nanda2023", "grokfast2024", "power2022")
"""Of a minute or two."""
CONTROLS = [(name, control) for name, protocol in PROTOCOLS.items() for control in protocol.controls]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    """The authors' measures by protocol; trained once."""
    return {}


def authors_measures(name: str, theirs: dict[str, np.ndarray]) -> np.ndarray:
    if name not in theirs:
        theirs[name] = of_the_authors(PROTOCOLS[name], SEEDS)
    return theirs[name]


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] if name in LONG else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in PROTOCOLS])
def test_the_job_learns_as_the_authors_training_does(name: str, theirs: dict[str, np.ndarray]) -> None:
    ours, other = of_the_job(PROTOCOLS[name].values, SEEDS), authors_measures(name, theirs)
    print(f"{name}: p = {chance(ours, other):.2g}", *described(ours, other), sep="\n")
    assert np.isfinite(ours[:, :2]).any(), "nothing was learned"
    assert chance(ours, other) > LEVEL, "\n".join(described(ours, other))


@pytest.mark.parametrize(("name", "control"), [pytest.param(*control, marks=marks(control[0])) for control in CONTROLS])
def test_a_protocol_that_differs_in_one_thing_is_told_from_the_authors(
    name: str, control: str, theirs: dict[str, np.ndarray]
) -> None:
    protocol = PROTOCOLS[name]
    ours = of_the_job({**protocol.values, **protocol.controls[control]}, SEEDS)
    other = authors_measures(name, theirs)
    p = chance(ours[:, : len(LEARNING)], other[:, : len(LEARNING)])
    print(f"{name}, {control}: p = {p:.2g}", *described(ours, other), sep="\n")
    assert p <= LEVEL, "\n".join(described(ours, other))


def test_the_comparison_of_equal_distributions_has_the_stated_level() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        sample = rng.normal(size=(2 * SEEDS, len(MEASURES)))
        sample[:, :2] = np.where(sample[:, :2] > 1, np.inf, np.round(sample[:, :2], 1))
        found.append(chance(sample[:SEEDS], sample[SEEDS:]) <= 0.1)
    assert 8 <= sum(found) <= 34  # 20 are expected
