"""Calibration of pack costs, and short rehearsals before a plan."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.catalogue import load_job
from jobs.double_descent.job import DoubleDescent
from jobs.job import Cost
from orchestrator.commands.inspect import time_words
from orchestrator.plan import calibration
from orchestrator.plan.calibration import Calibration, JobHistory, Machine
from orchestrator.plan.kinds import KindHistory, SweepHistory, Tally, kind_of
from orchestrator.plan.planner import Pack, Planner, summarise
from orchestrator.plan.rehearsal import rehearse, slowdown
from orchestrator.trial import Trial

DESCENT = "double_descent"
SLEEPY = "tests.jobs_for_rehearsal:sleepy"
EXITS = "tests.jobs_for_rehearsal:exits"

points = st.dictionaries(st.floats(-3, 6), st.floats(0.1, 9), min_size=1, max_size=6).map(
    lambda found: KindHistory(points=tuple(sorted(found.items())))
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


def of_function(job: str, count: int) -> list[Trial]:
    params = load_job(job).params_for({"seconds": 0.05})
    return [Trial(job=job, job_version=1, params=params, replicate=r) for r in range(count)]


@given(kind=points, shape=st.floats(-9, 9))
def test_a_ratio_is_within_the_range_of_measured_ratios(kind: KindHistory, shape: float) -> None:
    ratios = [ratio for _, ratio in kind.points]
    for found in (kind.ratio(shape), kind.blurred(shape)):
        assert min(ratios) * (1 - 1e-9) <= found <= max(ratios) * (1 + 1e-9)
    for x, ratio in kind.points:
        assert kind.ratio(x) == pytest.approx(ratio)


@given(kind=points, factor=st.floats(0.2, 5))
def test_the_first_run_outweighs_the_rehearsal_and_moves_what_it_did_not_show(kind: KindHistory, factor: float) -> None:
    seen = {0.0: (10.0, 10.0 * kind.ratio(0.0) * factor)}
    learnt = kind.learn(seen)
    assert learnt.runs == 1
    assert learnt.ratio(0.0) == pytest.approx(kind.ratio(0.0) * factor)
    for x, ratio in kind.points:
        if abs(x) >= 0.25:
            assert learnt.ratio(x) == pytest.approx(min(50.0, max(0.02, ratio * factor)))


def test_a_later_run_counts_half() -> None:
    once = KindHistory(points=((0.0, 1.0),)).learn({0.0: (1.0, 2.0)})
    assert once.learn({0.0: (1.0, 8.0)}).ratio(0.0) == pytest.approx(4.0)


def test_kinds_differ_by_key_by_pace_and_by_how_many_workers_share_the_cores() -> None:
    def cost(steps: int) -> Cost:
        return Cost(launches=1, matmul_flop=1, element_visits=1, memory_bytes=1, steps=steps, reports=10)

    names = [
        kind_of("j", 1, "a", cost(1000), 2),
        kind_of("j", 1, "b", cost(1000), 2),
        kind_of("j", 1, "a", cost(100_000), 2),
        kind_of("j", 1, "a", cost(1000), 1),
    ]
    assert len(set(names)) == 4
    assert kind_of("j", 1, "a", cost(1050), 2) == names[0]
    assert {name.partition("/")[0] for name in names} == {"j@1"}


def test_a_kind_never_seen_is_estimated_like_its_job_s_other_kinds() -> None:
    known = Calibration(kinds={"j@1/a": KindHistory(points=((0.0, 3.0),))}, jobs={"j": JobHistory(ratio=7.0)})
    assert known.ratio("j", "j@1/b", 0.0) == pytest.approx(3.0)
    assert known.ratio("j", "j@2/b", 0.0) == pytest.approx(7.0)


def test_what_trials_that_ended_early_took_is_no_property_of_their_kind() -> None:
    tally = Tally()
    tally.took(kind="j@1/a", shape=0.0, counted_s=10.0, estimated_s=20.0, actual_s=5.0, at_most=True)
    learnt = Calibration().learnt(
        job="j", sweep_id="s", tally=tally, trials=4, train_s=5.0, record_s=0.1, startup_s=2.0
    )
    assert not learnt.kinds
    assert learnt.history("j").ratio == 1.0
    assert learnt.early("j", "s") == (pytest.approx(0.25), True)
    assert learnt.early("j", "another") == (pytest.approx(0.25), False)
    assert learnt.startup_s == 2.0


def test_all_that_was_learnt_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_run_s_packs_correct_the_next_plan_of_the_same_trials() -> None:
    trials = [descent(width, r) for width in (8, 64, 200) for r in range(3)]
    first = planner()
    packs = first.plan(trials, workers=2)
    for pack in packs:
        first.took(pack, 3 * pack.seconds)
    learnt = first.calibration.learnt(
        job=DESCENT, sweep_id="sweep", tally=first.tally, trials=9, train_s=1.0, record_s=0.001, startup_s=None
    )
    for pack in packs:
        assert planner(known=learnt).pack(pack.trials).seconds == pytest.approx(3 * pack.seconds, rel=0.02)


def test_a_sweep_that_may_end_early_is_bounded_and_not_guessed() -> None:
    job = load_job("grokking")
    params = job.params_for({"steps": 500, "stop_accuracy": 0.9, "modulus": 7})
    trials = [Trial(job="grokking", job_version=1, params=params, replicate=r) for r in range(4)]

    def words(known: Calibration, slow: float = 1.0) -> str:
        one = planner("grokking", known)
        packs = one.plan(trials, workers=2)
        return time_words(summarise(one, trials, packs, finished=0, workers=2, slowdown=slow))

    first = words(Calibration())
    assert first.startswith("at most ")
    assert first.endswith("trials may end early")
    again = words(Calibration(sweeps={"sweep": SweepHistory(early=0.5)}))
    assert "if as early as the last trials of this sweep" in again
    other = words(Calibration(jobs={"grokking": JobHistory(early=0.5)}), slow=3.0)
    assert "if as early as the last trials of this job" in other
    assert "by a factor of 3.0" in other


def test_others_use_of_the_machine_stretches_the_estimate() -> None:
    one = planner()
    packs = one.plan([descent(200, r, steps=20_000) for r in range(8)], workers=2)
    alone, together = one.estimate_s(packs, workers=2), one.estimate_s(packs, workers=2, slowdown=2.0)
    assert alone is not None
    assert together == pytest.approx(2 * alone)


def test_a_machine_is_never_faster_than_alone() -> None:
    assert slowdown(1) >= 1.0


@pytest.mark.slow
def test_a_rehearsal_times_the_kinds_that_nobody_saw_and_only_once() -> None:
    one = planner(at_once=1)
    trials = [descent(width, r, steps=3000) for width in (8, 64, 200) for r in range(2)]
    found = rehearse(one, trials, workers=1, threads=1)
    assert len(found.kinds) == 1
    (kind,) = found.kinds.values()
    assert kind.runs == 0
    assert len(kind.points) >= 2
    assert all(0.02 < ratio < 50 for _, ratio in kind.points)
    assert rehearse(planner(known=found, at_once=1), trials, workers=1, threads=1) is found


@pytest.mark.slow
def test_a_function_is_timed_by_whole_trials_which_may_wait_rather_than_compute() -> None:
    found = rehearse(planner(SLEEPY, at_once=1), of_function(SLEEPY, 30), workers=1, threads=1)
    seen = found.sweeps["sweep"]
    assert seen.trial_s is not None
    assert seen.trial_s >= 0.05
    assert not seen.computes
    timed = planner(SLEEPY, found, at_once=1)
    packs: list[Pack] = timed.plan(of_function(SLEEPY, 30), workers=1)
    estimate = timed.estimate_s(packs, workers=1)
    assert estimate is not None
    assert estimate >= 30 * seen.trial_s * (1 - 1e-9)
    assert math.isfinite(estimate)


@pytest.mark.slow
def test_a_job_that_ends_its_process_leaves_the_plan_as_it_was() -> None:
    one = planner(EXITS, at_once=1)
    assert rehearse(one, of_function(EXITS, 4), workers=1, threads=1) is one.calibration
