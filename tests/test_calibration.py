"""Laws of the corrections learnt from past runs, and of the short trainings before a plan."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.catalogue import load_job
from jobs.double_descent.job import DoubleDescent
from jobs.job import Cost
from orchestrator.commands.inspect import time_estimate
from orchestrator.plan import calibration
from orchestrator.plan.calibration import Calibration, Machine
from orchestrator.plan.history import JobHistory, KindHistory, SweepHistory, Tally
from orchestrator.plan.pack import Pack, pack_kind
from orchestrator.plan.planner import Planner
from orchestrator.plan.rehearsal import rehearse, slowdown
from orchestrator.trial import Trial

DESCENT = "double_descent"
SLEEPY = "tests.jobs_for_rehearsal:sleepy"
EXITS = "tests.jobs_for_rehearsal:exits"

points = st.dictionaries(st.floats(-3, 6), st.floats(0.1, 9), min_size=1, max_size=6).map(
    lambda ratios: KindHistory(points=tuple(sorted(ratios.items())))
)


def descent(width: int, replicate: int = 0, **settings: object) -> Trial:
    values = {
        "width": width,
        "data": "gaussian_teacher",
        "inputs": 20,
        "pool": 400,
        "test_count": 100,
        "steps": 300,
        "curve_points": 10,
        **settings,
    }
    return Trial(job=DESCENT, job_version=1, params=DoubleDescent().params_for(values), replicate=replicate)


def planner(job: str = DESCENT, known: Calibration | None = None, *, at_once: int = 2) -> Planner:
    return Planner(
        job_name=job,
        job=load_job(job),
        calibration=known or Calibration(),
        memory_budget_bytes=1e12,
        at_once=at_once,
        sweep_id="sweep",
    )


def function_trials(job: str, count: int) -> list[Trial]:
    params = load_job(job).params_for({"seconds": 0.05})
    return [Trial(job=job, job_version=1, params=params, replicate=r) for r in range(count)]


@given(kind=points, shape=st.floats(-9, 9))
def test_a_ratio_lies_between_the_measured_ones(kind: KindHistory, shape: float) -> None:
    ratios = [ratio for _, ratio in kind.points]
    for value in (kind.ratio(shape), kind.smoothed_ratio(shape)):
        assert min(ratios) * (1 - 1e-9) <= value <= max(ratios) * (1 + 1e-9)
    for x, ratio in kind.points:
        assert kind.ratio(x) == pytest.approx(ratio)


@given(kind=points, factor=st.floats(0.2, 5))
def test_the_first_run_replaces_the_rehearsal_and_scales_the_shapes_that_it_did_not_measure(
    kind: KindHistory, factor: float
) -> None:
    learnt = kind.with_run({0.0: (10.0, 10.0 * kind.ratio(0.0) * factor)})
    assert learnt.runs == 1
    assert learnt.ratio(0.0) == pytest.approx(kind.ratio(0.0) * factor)
    for x, ratio in kind.points:
        if abs(x) >= 0.25:
            assert learnt.ratio(x) == pytest.approx(min(50.0, max(0.02, ratio * factor)))


def test_a_later_run_has_half_of_the_weight() -> None:
    once = KindHistory(points=((0.0, 1.0),)).with_run({0.0: (1.0, 2.0)})
    assert once.with_run({0.0: (1.0, 8.0)}).ratio(0.0) == pytest.approx(4.0)


def test_kinds_differ_by_pack_key_by_pace_and_by_the_number_of_workers_that_share_the_cores() -> None:
    def cost(steps: int) -> Cost:
        return Cost(launches=1, matmul_flop=1, element_visits=1, memory_bytes=1, steps=steps, reports=10)

    names = [
        pack_kind("j", 1, "a", cost(1000), 2),
        pack_kind("j", 1, "b", cost(1000), 2),
        pack_kind("j", 1, "a", cost(100_000), 2),
        pack_kind("j", 1, "a", cost(1000), 1),
    ]
    assert len(set(names)) == 4
    assert pack_kind("j", 1, "a", cost(1050), 2) == names[0]
    assert {name.partition("/")[0] for name in names} == {"j@1"}


def test_an_unknown_kind_is_estimated_from_its_job_s_other_kinds() -> None:
    known = Calibration(kinds={"j@1/a": KindHistory(points=((0.0, 3.0),))}, jobs={"j": JobHistory(ratio=7.0)})
    assert known.ratio("j", "j@1/b", 0.0) == pytest.approx(3.0)
    assert known.ratio("j", "j@2/b", 0.0) == pytest.approx(7.0)


def test_trials_that_ended_early_do_not_correct_their_kind() -> None:
    tally = Tally()
    tally.add(Pack(trials=(descent(8),) * 4, kind="j@1/a", counted_s=10.0, seconds=20.0, at_most=True), 5.0)
    learnt = Calibration().with_run("j", "s", tally, 5.0, 0.1, 2.0)
    assert not learnt.kinds
    assert learnt.job("j").ratio == 1.0
    assert learnt.early("j", "s") == (pytest.approx(0.25), True)
    assert learnt.early("j", "another") == (pytest.approx(0.25), False)
    assert learnt.startup_s == 2.0


def test_histories_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = Calibration(
        machine=Machine(measured=True),
        kinds={"j@1/a": KindHistory(points=((0.5, 2.0), (1.5, 3.0)), runs=2)},
        sweeps={"s": SweepHistory(early=0.5)},
    )
    calibration.save(kept)
    assert calibration.load("cpu") == kept
    old = json.loads(calibration.cache_file("cpu").read_text())
    del old["kinds"]
    calibration.cache_file("cpu").write_text(json.dumps(old))
    assert calibration.load("cpu", probe=False) == Calibration()


def test_the_packs_of_a_run_correct_the_next_plan_of_the_same_trials() -> None:
    trials = [descent(width, r) for width in (8, 64, 200) for r in range(3)]
    first = planner()
    packs = first.plan(trials, workers=2)
    for pack in packs:
        first.tally.add(pack, 3 * pack.seconds)
    learnt = first.calibration.with_run(DESCENT, "sweep", first.tally, 1.0, 0.001, None)
    for pack in packs:
        assert planner(known=learnt).pack(pack.trials).seconds == pytest.approx(3 * pack.seconds, rel=0.02)


def test_trials_that_may_end_early_get_an_upper_bound() -> None:
    job = load_job("grokking")
    params = job.params_for({"steps": 500, "stop_accuracy": 0.9, "modulus": 7})
    trials = [Trial(job="grokking", job_version=1, params=params, replicate=r) for r in range(4)]

    def words(known: Calibration, slow: float = 1.0) -> str:
        plan = planner("grokking", known)
        return time_estimate(plan, plan.plan(trials, workers=2), workers=2, slowdown=slow)

    first = words(Calibration())
    assert first.startswith("at most ")
    assert first.endswith("trials may end early")
    again = words(Calibration(sweeps={"sweep": SweepHistory(early=0.5)}))
    assert "if as early as the last trials of this sweep" in again
    other = words(Calibration(jobs={"grokking": JobHistory(early=0.5)}), slow=3.0)
    assert "if as early as the last trials of this job" in other
    assert "by a factor of 3.0" in other


def test_a_slowdown_by_other_programs_lengthens_the_estimate() -> None:
    plan = planner()
    packs = plan.plan([descent(200, r, steps=20_000) for r in range(8)], workers=2)
    alone, together = plan.estimate_s(packs, workers=2), plan.estimate_s(packs, workers=2, slowdown=2.0)
    assert alone is not None
    assert together == pytest.approx(2 * alone)


def test_a_slowdown_is_at_least_one() -> None:
    assert slowdown(1) >= 1.0


@pytest.mark.slow
def test_a_rehearsal_times_unknown_kinds_only_once() -> None:
    trials = [descent(width, r, steps=3000) for width in (8, 64, 200) for r in range(2)]
    known = rehearse(planner(at_once=1), trials, workers=1, threads=1).calibration
    (kind,) = known.kinds.values()
    assert kind.runs == 0
    assert len(kind.points) >= 2
    assert all(0.02 < ratio < 50 for _, ratio in kind.points)
    assert rehearse(planner(known=known, at_once=1), trials, workers=1, threads=1).calibration is known


@pytest.mark.slow
def test_a_function_is_timed_by_whole_trials_which_may_wait_instead_of_compute() -> None:
    known = rehearse(planner(SLEEPY, at_once=1), function_trials(SLEEPY, 30), workers=1, threads=1).calibration
    history = known.sweeps["sweep"]
    assert history.trial_s is not None
    assert history.trial_s >= 0.05
    assert not history.computes
    timed = planner(SLEEPY, known, at_once=1)
    packs: list[Pack] = timed.plan(function_trials(SLEEPY, 30), workers=1)
    estimate = timed.estimate_s(packs, workers=1)
    assert estimate is not None
    assert estimate >= 30 * history.trial_s * (1 - 1e-9)
    assert math.isfinite(estimate)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_rehearsal_does_not_wait_for_what_the_job_has_started(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    spec = "tests.jobs_for_rehearsal:leaves"
    params = load_job(spec).params_for({"flag": str(flag)})
    trials = [Trial(job=spec, job_version=1, params=params, replicate=r) for r in range(2)]
    try:
        known = rehearse(planner(spec, at_once=1), trials, workers=1, threads=1).calibration
    finally:
        flag.unlink()
    assert known.sweeps["sweep"].trial_s is not None


@pytest.mark.slow
def test_a_job_that_ends_its_process_leaves_the_calibration_unchanged() -> None:
    plan = planner(EXITS, at_once=1)
    rehearsal = rehearse(plan, function_trials(EXITS, 4), workers=1, threads=1)
    assert rehearsal.calibration is plan.calibration
    ((_, facts),) = rehearsal.trials
    assert (facts.status, facts.error) == ("FAILED", "the process that trained it ended with exit code 3")


def recording_s(known: Calibration, trials: list[Trial]) -> float:
    """The estimate of the time to record these trials."""
    job = load_job(DESCENT)
    return Planner(job_name=DESCENT, job=job, calibration=known, memory_budget_bytes=1e9)._record_s(trials)


def after_a_run(trials: list[Trial], record_s: float) -> Calibration:
    """What is known after a run that took so long to record these trials."""
    planner = Planner(job_name=DESCENT, job=load_job(DESCENT), calibration=Calibration(), memory_budget_bytes=1e9)
    planner.ended(Pack(trials=tuple(trials), counted_s=1.0, seconds=1.0, kind="j@1/a"), 1.0)
    return planner.calibration.with_run(DESCENT, "sweep", planner.tally, 1.0, record_s, None)


def test_the_time_to_record_is_learnt_by_rows_and_not_by_trials() -> None:
    long = [descent(8, k, curve_points=100) for k in range(200)]
    short = [descent(8, k, curve_points=2) for k in range(200)]
    twice = 2 * recording_s(Calibration(), long)
    known = after_a_run(long, twice)
    assert recording_s(known, long) == pytest.approx(twice)
    assert recording_s(known, short) == pytest.approx(2 * recording_s(Calibration(), short))
    assert recording_s(known, short) < 0.3 * twice


def test_a_run_of_few_trials_says_little_about_the_time_to_record() -> None:
    few = [descent(8, k) for k in range(3)]
    many = [descent(8, k) for k in range(1000)]
    usual = recording_s(Calibration(), many)
    # Its first and last write take longer than all of its trials.
    assert recording_s(after_a_run(few, 40 * recording_s(Calibration(), few)), many) < 1.2 * usual


def test_what_an_earlier_version_has_learnt_is_used() -> None:
    known = Calibration(jobs={DESCENT: JobHistory(record_s=0.01, runs=1)})
    assert recording_s(known, [descent(8)] * 100) == pytest.approx(1.0)
