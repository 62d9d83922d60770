"""verify-job finds the trials whose curves depend on their pack, whichever parameter is wrong."""

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.job import Cost, Job, ParamError, Params, Report, param
from orchestrator.cli import main
from orchestrator.commands.varying import members_of, variation


@dataclass(frozen=True, kw_only=True)
class OscillatorParams(Params):
    coupling: float = param(1.0, low=0, high=1, meaning="strength of the coupling")
    spread: float = param(0.0, low=0, high=10, meaning="spread of the noise, beside 1")
    order: int = param(1, low=1, high=3, meaning="order of the noise")
    shape: str = param("round", choices=("round", "flat"), meaning="shape of the noise")
    reflected: bool = param(False, meaning="whether the curve is reflected")
    steps: int = param(20, low=1, meaning="length")
    kind: str = param("a", choices=("a", "b"), meaning="what a pack has in common")
    label: str = param("", meaning="free text")
    only: int = param(2, low=2, high=2, meaning="has one valid value")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order > 1 and self.shape == "flat":
            raise ParamError("shape", "must be round for an order above 1", self.shape)


class Oscillator(Job[OscillatorParams]):
    """A packed trial is the trial; a subclass takes one parameter from the first trial of the pack."""

    class Thresholds(Params):
        pass

    Params = OscillatorParams
    metrics, phases = ("height",), ("done",)
    wrong = ""

    def pack_key(self, params: OscillatorParams) -> str:
        return params.kind

    def cost(self, params: OscillatorParams, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=1, matmul_flop=0, element_visits=0, memory_bytes=0)

    def train(self, pack: Any, *, device: str) -> Iterator[Report]:
        first = {self.wrong: getattr(pack[0].params, self.wrong)} if self.wrong else {}
        lengths = np.array([replace(member.params, **first).steps for member in pack])
        curves = [_curve(replace(member.params, **first), member.seed) for member in pack]
        for step in range(1, int(lengths.max()) + 1):
            members = np.flatnonzero(lengths >= step)
            height = np.array([curves[k][step - 1] for k in members])
            yield Report(
                step=step, members=members, values={"height": height}, finished=np.flatnonzero(lengths == step)
            )

    def observe(self, params: Any, curves: Any, thresholds: Any) -> dict[str, float]:
        return {}

    def phase(self, params: Any, observations: Any, thresholds: Any) -> str:
        return "done"


def _curve(p: OscillatorParams, seed: int) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).standard_normal(p.steps) ** p.order
    noise = np.sign(noise) if p.shape == "flat" else noise
    return np.cumsum(noise) * (1 + p.spread) * (1 + p.coupling) * (-1 if p.reflected else 1)


VARIED = ("coupling", "spread", "order", "shape", "reflected", "steps")


class Coupling(Oscillator):
    wrong = "coupling"


class Spread(Oscillator):
    wrong = "spread"


class Order(Oscillator):
    wrong = "order"

    def pack_key(self, params: OscillatorParams) -> str:
        return params.kind + params.shape


class Shape(Oscillator):
    wrong = "shape"

    def pack_key(self, params: OscillatorParams) -> str:
        return params.kind + str(params.order)


class Reflected(Oscillator):
    wrong = "reflected"


class Steps(Oscillator):
    wrong = "steps"


def test_a_correct_job_is_verified_and_what_it_varies_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:Oscillator"]) == 0
    text = capsys.readouterr().out
    assert (
        "varied        seed, coupling (1.0 and 0.5), spread (0.0 and 0.1), order (1 and 2), shape (round and flat), "
        "reflected (False and True), steps (20 and 10)\n"
        "equal         kind: every other value that was tried has another pack_key\n"
        "not varied    label: text\n"
        "not varied    only: no other value found is valid\n"
    ) in text
    assert text.splitlines()[-1] == "verdict       a packed trial is the trial"


@pytest.mark.parametrize("job", [Coupling, Spread, Order, Shape, Reflected, Steps])
def test_a_parameter_taken_from_the_first_trial_is_found(
    job: type[Oscillator], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-job", f"{__name__}:{job.__name__}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("differ        a pack and each trial alone"))
    other = variation(job(), OscillatorParams()).others[job.wrong]
    assert lines[place + 1].lstrip().startswith("trial ") and f"{job.wrong}={other}" in lines[place + 1]
    assert lines[-1] == "verdict       the curves of a trial depend on its pack"


def test_each_parameter_has_two_values_in_the_pack_and_no_two_change_together() -> None:
    job, params = Oscillator(), OscillatorParams()
    members = members_of(job, params, variation(job, params).others)
    columns = {name: [getattr(member.params, name) for member in members] for name in VARIED}
    assert members[0].params == params
    assert len({member.seed for member in members}) == len(members)
    assert len({job.pack_key(member.params) for member in members}) == 1
    changes = {name: tuple(value != values[0] for value in values) for name, values in columns.items()}
    assert all(any(change) for change in changes.values())
    assert all(one != other for one, other in itertools.combinations(changes.values(), 2))


class Ordered(Oscillator):
    """Depends on the place in the pack alone."""

    def train(self, pack: Any, *, device: str) -> Iterator[Report]:
        for report in super().train(pack, device=device):
            yield replace(report, values={"height": report.values["height"] + 0.1 * report.members})


class Stacked(Oscillator):
    """Says that trials of different lengths share packs, and cannot train them."""

    def train(self, pack: Any, *, device: str) -> Iterator[Report]:
        np.stack([np.zeros(member.params.steps) for member in pack])
        yield from super().train(pack, device=device)


class Partial(Oscillator):
    """Accepts a value with which it cannot train."""

    def train(self, pack: Any, *, device: str) -> Iterator[Report]:
        if any(member.params.reflected for member in pack):
            raise ValueError("a reflected curve needs a mirror")
        yield from super().train(pack, device=device)


def test_a_curve_that_depends_on_the_order_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:Ordered"]) == 1
    assert "differ        a pack and the same trials in another order" in capsys.readouterr().out


def test_a_pack_that_cannot_train_together_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:Stacked"]) == 1
    text = capsys.readouterr().out
    assert "differ        each trial trains alone, and a pack of them does not: ValueError: all input arrays" in text
    assert "trial 2: seed=2, " in text


def test_a_value_that_no_trial_can_be_trained_with_is_kept_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:Partial"]) == 0
    text = capsys.readouterr().out
    assert "not varied    reflected: with True a trial fails: ValueError: a reflected curve needs a mirror\n" in text


class Broken(Oscillator):
    def train(self, pack: Any, *, device: str) -> Iterator[Report]:
        raise ValueError("nothing can be trained")


def test_a_trial_that_fails_alone_is_a_mistake_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:Broken"]) == 2
    error = capsys.readouterr().err
    line = inspect.getsourcelines(Broken.train)[1] + 1
    assert error.startswith("phasefront verify-job: JOB: a trial failed: ValueError: nothing can be trained\n  value: ")
    assert "coupling=1.0" in error and error.endswith(f"  next:  correct {__file__}:{line}, or the values\n")
    assert len(error.splitlines()) == 3, "no traceback"


def narrow(*, rate: float = 0.1, width: int = 8, seed: int, report: Any) -> None:
    if width < 8:
        raise ValueError("too narrow")
    report(1, loss=rate * seed / width)


def failing(*, rate: float = 0.1, seed: int, report: Any) -> None:
    raise ValueError(f"no rate is right, {rate} neither")


def test_a_function_that_fails_is_named_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:failing"]) == 2
    error = capsys.readouterr().err
    line = inspect.getsourcelines(failing)[1] + 1
    assert "JOB: a trial failed: ValueError: no rate is right, 0.1 neither\n  value: " in error
    assert error.endswith(f"  next:  correct {__file__}:{line}, or the values\n") and "Traceback" not in error


def test_a_function_that_fails_with_another_value_is_varied_in_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:narrow"]) == 0
    text = capsys.readouterr().out
    assert "varied        seed, rate (0.1 and 0.05)\n" in text
    assert "not varied    width: with 4 a trial fails: ValueError: too narrow\n" in text


def test_a_module_job_varies_what_its_pack_key_allows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", "tests.test_module_job:Small"]) == 0
    text = capsys.readouterr().out
    for name in ("learning_rate", "weight_decay", "label_noise", "steps", "curve_points"):
        assert f", {name} (" in text, name
    assert text.splitlines()[-1] == "verdict       a packed trial is the trial"


@pytest.mark.parametrize(
    "arguments",
    [
        "ridge inputs=20 sample_count=15",
        "ridge inputs=20 sample_count=15 solver=gradient_descent",
        "grokking modulus=7 width=16",
        "double_descent data=gaussian_linear loss=squared inputs=10 width=8 pool=200 test_count=20",
        "image_double_descent data=mnist1d model=cnn_1d augment=false width=4 pool=200 test_count=20 batch_size=20",
    ],
)
def test_built_in_jobs_are_verified(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    job, *values = arguments.split()
    code = main(["verify-job", job, "--steps", "10", *(f"--set={value}" for value in values)])
    text = capsys.readouterr().out
    assert code == 0, text
    assert "learning_rate (" in text and "steps (10 and 5)" in text
