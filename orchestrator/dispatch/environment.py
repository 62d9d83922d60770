"""How and in which environment a trial was trained: enough to repeat the training, bit for bit in the same environment.

Each trial is recorded with one line of JSON: its pack (a digest of the trial ids in order), its position in the pack,
its random key, the job's version, and the environment (code, libraries, device, threads). torch is not imported here.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from jobs.function import shown
from orchestrator.dispatch.source import installed, source_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What a curve depends on within rounding, apart from the trial and its pack."""

    code: str
    """Release of this package, and a digest of the sources of the trial's job (`orchestrator.dispatch.source`)."""
    python: str
    torch: str
    """"" if the job does not use it."""
    numpy: str
    device: str
    """The processor and its vector instructions, or the GPU's name."""
    threads: int
    """Of tensor operations; 0 if torch is not loaded."""

    def differences(self, other: Environment) -> list[str]:
        """The fields that differ, as `name: own value, other value`."""
        pairs = [(name, value, getattr(other, name)) for name, value in asdict(self).items()]
        return [f"{name}: {own}, {value}" for name, own, value in pairs if own != value]


IN_ONE_PIECE = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecord:
    """How one trial was trained."""

    pack: str
    """Digest of the ids, in order, of the trials that were trained with it, its own included."""
    at: int
    """The trial's position among them, from 0."""
    of: int
    """Their number."""
    seed: int
    """The 64-bit random key of the trial."""
    version: int
    """The job's version."""
    environment: Environment
    continued: int | None = None
    """The step at which it was last continued from a checkpoint, IN_ONE_PIECE if it never was; None: not recorded."""

    def text(self) -> str:
        """The recorded form."""
        content: dict[str, Any] = asdict(self)
        content |= {"seed": str(self.seed)} | content.pop("environment")
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> TrainingRecord:
        """Parse the recorded form.

        Raises:
            ValueError: `text` is not such a record.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            own = {name: content.pop(name) for name in ("pack", "at", "of", "version")}
            own["continued"] = content.pop("continued", None)
            record = cls(seed=int(content.pop("seed")), environment=Environment(**content), **own)
            numbers = [record.at, record.of, record.version, record.environment.threads]
            texts = (record.pack, record.environment.device)
            if record.continued is not None:
                numbers.append(record.continued)
            if set(map(type, numbers)) != {int} or set(map(type, texts)) != {str} or not 0 <= record.at < record.of:
                raise TypeError("a value of another kind")
            return record
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"no record of a training: {shown(text)}") from error


def pack_digest(trial_ids: Sequence[str]) -> str:
    """16 hexadecimal digits that depend on the trials and their order."""
    return hashlib.blake2b("/".join(trial_ids).encode(), digest_size=8).hexdigest()


@cache
def environment_of(job: str, device: str) -> Environment:
    """The environment of this process for a job trained on `device` ("cpu", "cuda", "cuda:1")."""
    torch = sys.modules.get("torch")
    return Environment(
        code=source_of(job).text,
        python=platform.python_version(),
        torch="" if torch is None else str(torch.__version__),
        numpy=installed("numpy"),
        device=_device(torch, device),
        threads=0 if torch is None else int(torch.get_num_threads()),
    )


def _device(torch: Any, device: str) -> str:
    if torch is not None and device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    vectors = "" if torch is None else f" {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.machine()}{vectors}"
