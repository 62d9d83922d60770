"""`make gpu-dry`: no pack of a job breaks the device law, and what would break it is found."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.cuda.is_available() or not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="needs a torch that can register a backend from Python (2.13 can), and no GPU: there, tests/gpu runs",
    ),
]

ROOT = Path(__file__).parent.parent
FAMILIES = ("perceptrons", "images", "quadratic", "embedding", "transformer", "ridge", "module")
LONG = ("images", "transformer", "module")
"""Of a minute each; `make gpu-dry` runs all of them."""
FOUND = {
    "mixed": "mixed devices: tests/gpu_dry/faults.py",
    "read": "read in advance: tests/gpu_dry/faults.py",
    "upload": "upload in advance: tests/gpu_dry/faults.py",
    "growth": "grows by 8 bytes per step",  # a float32 of each of the two models that stay
    "unnamed": "read outside to_host: tests/gpu_dry/faults.py",
}


def command(*arguments: str) -> tuple[int, str]:
    """In a process of its own: the stand-in device is registered once and for all."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_dry", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in FAMILIES]
)
def test_no_pack_breaks_the_device_law(family: str) -> None:
    code, output = command("-k", family)
    assert code == 0, output
    assert "0 break the device law" in output


def test_every_pack_is_of_a_family() -> None:
    from tests.gpu_dry.cases import cases

    assert not [case.name for case in cases("") if not case.name.startswith(FAMILIES)]


@pytest.mark.parametrize("fault", FOUND)
def test_a_planted_fault_is_found(fault: str) -> None:
    code, output = command("-k", "perceptrons, adam", "--plant", fault)
    assert code == 1, output
    assert FOUND[fault] in output
