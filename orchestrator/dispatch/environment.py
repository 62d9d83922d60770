"""Where and with what a trial was trained: enough to train it again, bit for bit where nothing differs.

A record of it goes with every trial, as one line of JSON: the pack (a digest of its trials in order, the trial's place
in it), the trial's key of random numbers, the job's version, and the setting: code, libraries, device, threads.
Imports no torch: a worker that trains with it has loaded it already.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jobs
from jobs.catalogue import load_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a curve's last bits depend on, beside the trial and its pack."""

    code: str
    """Release of this package, and a digest of the source of every built-in job and of the trial's own job."""
    python: str
    torch: str
    """"" where the job does not use it."""
    numpy: str
    device: str
    """The processor and its vector instructions, or the GPU's name."""
    threads: int
    """Of tensor operations; 0 where torch is not loaded."""

    def differences(self, other: Setting) -> list[str]:
        """What differs, as `name: this, other`."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name}: {mine[name]}, {theirs[name]}" for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """How one trial was trained."""

    pack: str
    """Digest of the pack's trial ids in order."""
    at: int
    """The trial's place in the pack, from 0."""
    of: int
    """Trials of the pack."""
    seed: int
    """The 64-bit key of the trial's random numbers."""
    version: int
    """The job's version."""
    setting: Setting

    def text(self) -> str:
        """As it is recorded."""
        content = {"pack": self.pack, "at": self.at, "of": self.of, "seed": str(self.seed), "version": self.version}
        return json.dumps(content | asdict(self.setting), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Trained:
        """From what was recorded.

        Raises:
            ValueError: it is something else.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            own = {name: content.pop(name) for name in ("pack", "at", "of", "version")}
            return cls(seed=int(content.pop("seed")), setting=Setting(**content), **own)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no record of a training: {text!r}") from error


def pack_digest(trial_ids: Sequence[str]) -> str:
    """16 hexadecimal digits: the same trials in the same order, the same digest."""
    return hashlib.blake2b("/".join(trial_ids).encode(), digest_size=8).hexdigest()


@cache
def setting(job: str, device: str) -> Setting:
    """The setting of this process, for a job trained on this device ("cpu", "cuda", "cuda:1")."""
    torch = sys.modules.get("torch")
    return Setting(
        code=f"{_release()}+{_source_digest(job)}",
        python=platform.python_version(),
        torch="" if torch is None else str(torch.__version__),
        numpy=_installed("numpy"),
        device=_device(torch, device),
        threads=0 if torch is None else int(torch.get_num_threads()),
    )


def _device(torch: Any, device: str) -> str:
    if torch is not None and device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    vectors = "" if torch is None else f" {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.machine()}{vectors}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _release() -> str:
    return _installed("phasefront") or "0"


@cache
def _source_digest(job: str) -> str:
    """12 hexadecimal digits of the source of the jobs package and of the job's own module."""
    folder = Path(next(iter(jobs.__path__)))
    files = {f"jobs/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*.py")}
    found = load_job(job)
    module = sys.modules.get(getattr(found, "function", type(found)).__module__)
    own = getattr(module, "__file__", None)
    if own is not None and not Path(own).is_relative_to(folder):
        files["job"] = Path(own)
    return _digest(files)


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return digest.hexdigest()
