"""A trial's id is the hash of its content as JSON, however fast it is computed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from jobs.job import Params, Scalar, as_dict, identity, param
from orchestrator.trial import Trial, digest


@dataclass(frozen=True, kw_only=True)
class Options(Params):
    """Every type, with options that were added later."""

    rate: float = param(0.0, meaning="rate")
    count: int = param(1, meaning="count")
    name: str = param("", meaning="name")
    on: bool = param(False, meaning="on")
    later_rate: float = param(1.0, added=True, meaning="added")
    later_name: str = param("none", added=True, meaning="added")


def plain(trial: Trial) -> str:
    """As the first version computed it."""
    known = dict(as_dict(trial.params))
    for name, default in (("later_rate", 1.0), ("later_name", "none")):
        if known[name] == default:
            del known[name]
    content = ["trial", trial.job, trial.job_version, known, trial.replicate, trial.base_seed]
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, 1e22, 1e-7])


@given(
    rate=numbers,
    count=st.integers(-(2**70), 2**70),
    name=st.text(),
    on=st.booleans(),
    later_rate=numbers,
    later_name=st.text(max_size=3) | st.just("none"),
    job=st.text(min_size=1),
    replicate=st.integers(0, 10**6),
    seed=st.integers(-(2**70), 2**70),
)
def test_the_id_is_the_hash_of_the_content(job: str, replicate: int, seed: int, **values: Scalar) -> None:
    trial = Trial(job=job, job_version=3, params=Options(**values), replicate=replicate, base_seed=seed)
    assert trial.id == plain(trial)
    assert trial.id == digest("trial", job, 3, identity(trial.params), replicate, seed).hex()
    other = trial.with_replicate(replicate + 1)
    assert other.id == plain(other) != trial.id and other.params is trial.params


def test_zeros_of_both_signs_are_different_trials() -> None:
    one, other = (Trial(job="j", job_version=1, params=Options(rate=zero), replicate=0) for zero in (0.0, -0.0))
    assert (one.id, other.id) == (plain(one), plain(other)) and one.id != other.id
