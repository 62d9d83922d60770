"""The precision of matrix products is a trial's own: rounded as the format says, and no switch of the process."""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from packing import assert_packed_is_solo, curves_of
from torch import Tensor, nn

from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.job import DoubleDescent
from jobs.grokking.job import Grokking
from jobs.job import Job, Member
from jobs.module import Data, ModuleJob, ModuleParams, Random
from jobs.packed.precision import bf16, products, tf32
from orchestrator.trial import Trial

BITS = {"tf32": 10, "bf16": 7}
"""After the binary point."""
ROUNDING = {"tf32": tf32, "bf16": bf16}


class Attending(ModuleJob):
    """Attention and a convolution over 60 training sequences of four places."""

    Params = ModuleParams

    def model(self, params: Any) -> nn.Module:
        return Reader()

    def data(self, params: Any, random: Random) -> Data:
        x, y = random.normal("x", 90, 4, 8), random.integers("y", 3, 90)
        return Data(train=(x[:60], y[:60]), test=(x[60:], y[60:]))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.readout = nn.Conv1d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x.mT).mT
        return self.readout(nn.functional.scaled_dot_product_attention(x, x, x).mean(-2))


@dataclass(frozen=True)
class Case:
    job: Job[Any]
    given: dict[str, Any]


CASES = {
    "perceptron": Case(DoubleDescent(), {"pool": 60, "test_count": 20, "batch_size": 16, "width": 12, "steps": 12}),
    "grokking": Case(Grokking(), {"modulus": 7, "width": 16, "steps": 12, "weight_decay": 0.1}),
    "transformer": Case(
        Grokking(), {"model": "transformer", "modulus": 7, "width": 16, "heads": 2, "steps": 8, "loss": "cross_entropy"}
    ),
    "module": Case(Attending(), {"steps": 12, "optimiser": "sgd", "learning_rate": 0.1}),
}


JOBS: list[Job[Any]] = [DoubleDescent(), Grokking(), ImageDoubleDescent(), Attending()]


def members(case: Case, precision: str) -> list[Member[Any]]:
    params = case.job.params_for({**case.given, "matmul_precision": precision, "curve_points": 4})
    return [Member(params=params, seed=seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("precision", BITS)
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**127), max_value=2.0**127))
@example(value=1 + 2**-11)
@example(value=1 + 3 * 2**-11)
@example(value=1 + 2**-8)
@example(value=-1e-39)
def test_a_number_is_rounded_to_the_nearest_of_its_format_ties_to_even(precision: str, value: float) -> None:
    bits = BITS[precision]
    unit = 2.0 ** (max(np.frexp(value)[1] - 1, -126) - bits)  # between neighbouring numbers of the format
    expected = float(np.round(np.float64(value) / unit)) * unit  # numpy rounds ties to even
    assert ROUNDING[precision](torch.tensor([value])).item() == expected


@pytest.mark.parametrize("precision", BITS)
def test_what_is_not_finite_stays_so(precision: str) -> None:
    given = torch.tensor([np.inf, -np.inf, np.nan, -np.nan])
    torch.testing.assert_close(ROUNDING[precision](given), given, equal_nan=True)


@pytest.mark.parametrize("precision", BITS)
def test_the_operands_of_all_products_are_rounded_those_of_backward_passes_too(precision: str) -> None:
    """Against products in float64 of operands that were rounded by hand."""
    rounded = ROUNDING[precision]
    torch.manual_seed(0)
    a, b, delta = torch.randn(2, 5, 6), torch.randn(2, 6, 7), torch.randn(2, 5, 7)
    bias = torch.randn(7)

    def exact(x: Tensor, y: Tensor) -> Tensor:
        return (rounded(x).double() @ rounded(y).double()).float()

    left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
    with products(precision):
        (left @ right).backward(delta)
        found = {
            "bmm": torch.bmm(a, b),
            "out": torch.bmm(a, b, out=torch.empty(2, 5, 7)),
            "baddbmm": torch.baddbmm(bias, a, b),
            "mm": a[0] @ b[0],
            "addmm": torch.addmm(bias, a[0], b[0]),
            "mv": a[0] @ b[0, :, 0],
            "einsum": torch.einsum("mij,mjk->mik", a, b),
            "linear": nn.functional.linear(a, b[0].T, bias),
            "convolution": nn.functional.conv1d(a.mT, b[0].T[:, :, None], bias).mT,
        }
    expected = {
        **dict.fromkeys(("bmm", "out", "einsum"), exact(a, b)),
        "baddbmm": bias + exact(a, b),
        "mm": exact(a, b)[0],
        "addmm": bias + exact(a, b)[0],
        "mv": exact(a, b)[0, :, 0],
        **dict.fromkeys(("linear", "convolution"), bias + exact(a, b[0])),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    torch.testing.assert_close(left.grad, exact(delta, b.mT), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(right.grad, exact(a.mT, delta), rtol=1e-6, atol=1e-5)
    with products(precision):
        attended = nn.functional.scaled_dot_product_attention(a, a, a)
    weights = torch.softmax(exact(a * 6**-0.25, (a * 6**-0.25).mT), dim=-1)
    torch.testing.assert_close(attended, exact(weights, a), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", CASES)
def test_a_packed_trial_is_the_trial_in_each_precision_and_another_than_in_float32(name: str, precision: str) -> None:
    """The tolerance is that of the format: where a sum differs by its last bit, a number may round to its neighbour."""
    case, unit = CASES[name], 2.0 ** -BITS[precision]
    metrics = {"test_accuracy": 1.0, "train_accuracy": 1.0, "train_error": 1.0, "test_error": 1.0}
    course = assert_packed_is_solo(case.job, members(case, precision), rtol=unit / 4, atol=unit / 8, atols=metrics)
    plain = curves_of(case.job, members(case, "fp32"))
    for position, curves in course.curves.items():
        loss, other = curves.values["train_loss"], plain[position].values["train_loss"]
        assert loss[-1] != other[-1]
        np.testing.assert_allclose(loss, other, rtol=20 * unit)


def test_a_users_switches_change_no_trial_and_are_restored() -> None:
    """A user's module that sets them is imported into the same process."""
    backends: Any = torch.backends
    libraries = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    libraries += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [library.fp32_precision for library in libraries]
    set_by_user = ["tf32", "tf32", "tf32", "bf16", "bf16", "bf16"]
    try:
        for library, value in zip(libraries, set_by_user, strict=True):
            library.fp32_precision = value
        with products("fp32"):
            assert [library.fp32_precision for library in libraries] == ["ieee"] * 6
        with contextlib.suppress(ZeroDivisionError), products("tf32"):
            assert [library.fp32_precision for library in libraries] == ["tf32"] * 3 + ["ieee"] * 3
            raise ZeroDivisionError
        with products("bf16"):
            assert [library.fp32_precision for library in libraries] == ["tf32"] * 2 + ["ieee"] * 4
        assert [library.fp32_precision for library in libraries] == set_by_user
        curves = {name: curves_of(case.job, members(case, "fp32")) for name, case in CASES.items()}
        assert [library.fp32_precision for library in libraries] == set_by_user
    finally:
        for library, value in zip(libraries, before, strict=True):
            library.fp32_precision = value
    for name, case in CASES.items():
        for position, expected in curves_of(case.job, members(case, "fp32")).items():
            for metric, values in expected.values.items():
                np.testing.assert_array_equal(curves[name][position].values[metric], values)


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("cudnn", [False, True])
def test_the_older_switches_can_be_read_while_a_pack_trains_and_are_restored(matmul: str, cudnn: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
        for precision, allowed in (("fp32", False), ("tf32", True)):
            with products(precision):
                switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
                assert switches == (allowed, allowed)
                assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (matmul, cudnn)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Switching(Attending):
    """Its module does without cuDNN, as is usual where a gradient of a recurrent layer's gradient is needed."""

    def model(self, params: Any) -> nn.Module:
        class Plain(Reader):
            def forward(self, x: Tensor) -> Tensor:
                with torch.backends.cudnn.flags(enabled=False):
                    return super().forward(x)

        return Plain()


def test_a_module_may_use_switches_for_a_while() -> None:
    given = {"steps": 12, "optimiser": "sgd", "learning_rate": 0.1}
    plain, switching = (curves_of(job, members(Case(job, given), "fp32")) for job in (Attending(), Switching()))
    for position, curves in plain.items():
        for metric, values in curves.values.items():
            np.testing.assert_array_equal(switching[position].values[metric], values)


def test_before_torch_2_9_the_switches_of_tf32_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are still there in later versions."""
    monkeypatch.setattr("jobs.packed.precision._SINCE_2_9", False)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for precision, allowed in (("fp32", False), ("tf32", True), ("bf16", True)):
        with products(precision):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    "job", [DoubleDescent(), Grokking(), ImageDoubleDescent(), Attending()], ids=lambda job: type(job).__name__
)
def test_the_precision_is_part_of_a_trial_and_trials_of_two_precisions_share_no_pack(job: Job[Any]) -> None:
    def trial(**given: str) -> Trial:
        return Trial(job="any", job_version=1, params=job.params_for(given), replicate=0)

    assert trial().id == trial(matmul_precision="fp32").id != trial(matmul_precision="tf32").id
    keys = {job.pack_key(job.params_for({"matmul_precision": p})) for p in ("fp32", "tf32", "bf16")}
    assert len(keys) == 3
