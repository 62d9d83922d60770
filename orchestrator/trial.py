"""A trial: one setting of a job's parameters and a replicate, identified by the hash of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from jobs.job import Params, Scalar, as_dict, identity


def digest(*parts: object, allow_nan: bool = False) -> bytes:
    """The 16-byte hash of plain data; equal on every machine."""
    return _hash(json.dumps(parts, separators=(",", ":"), sort_keys=True, allow_nan=allow_nan))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


_last_identity: tuple[Params, str] | None = None
"""The parameters of which `_identity_text` was asked last, and its answer: replicates follow each other."""


def _identity_text(params: Params) -> str:
    global _last_identity
    known = _last_identity
    if known is None or known[0] is not params:
        _last_identity = known = params, _encode(identity(params))
    return known[1]


_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False).encode
"""Plain data as in `digest`."""


@lru_cache(maxsize=16)
def _quoted(text: str) -> str:
    return _encode(text)


def replicate_seed(job: str, base_seed: int, replicate: int) -> int:
    """The 64-bit key of a replicate's random numbers.

    It does not depend on the parameters: trials that differ along an axis share data split, noise and batches
    (common random numbers), and a longer training extends a curve.
    """
    return int.from_bytes(digest("seed", job, base_seed, replicate)[:8], "little")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One point of a sweep and one replicate of it."""

    job: str
    """The job as the sweep file names it."""
    job_version: int
    params: Params
    """All parameters, defaults included (the id leaves out options added later that are at their default)."""
    replicate: int
    base_seed: int = 0
    id: str = field(init=False)
    """32 hexadecimal digits: the hash of all of the above, so that equal trials have equal ids in any sweep."""

    def __post_init__(self) -> None:
        # The digest("trial", job, job_version, identity(params), replicate, base_seed), where the text of the
        # parameters is made once for all replicates.
        version, replicate, seed = map(int.__repr__, (self.job_version, self.replicate, self.base_seed))
        content = f'["trial",{_quoted(self.job)},{version},{_identity_text(self.params)},{replicate},{seed}]'
        object.__setattr__(self, "id", _hash(content).hex())

    def with_replicate(self, replicate: int) -> Trial:
        """The same setting with another seed."""
        return Trial(
            job=self.job,
            job_version=self.job_version,
            params=self.params,
            replicate=replicate,
            base_seed=self.base_seed,
        )

    @property
    def seed(self) -> int:
        return replicate_seed(self.job, self.base_seed, self.replicate)

    def settings(self) -> Mapping[str, Scalar]:
        """The parameters as plain data."""
        return as_dict(self.params)

    def text(self, axes: Iterable[str]) -> str:
        """The trial in messages: `width=8, replicate=0`, with its values of these parameters."""
        settings = self.settings()
        shown = [f"{name}={settings[name]}" for name in axes if name in settings]
        return ", ".join([*shown, f"replicate={self.replicate}"])
