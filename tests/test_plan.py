"""Packs and the estimate of a plan."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.catalogue import load_job
from jobs.job import Cost
from orchestrator.commands.inspect import plan_lines
from orchestrator.plan import calibration
from orchestrator.plan.calibration import Calibration, Machine
from orchestrator.plan.history import JobHistory, Tally
from orchestrator.plan.pack import Pack
from orchestrator.plan.planner import UNKNOWN_COST_PACK, Planner, makespan
from orchestrator.trial import Trial
from tests.jobs_for_runner import STEPS
from tests.runner_kit import COSTLY, RAMP, ramp

SPLIT_BY = "tests.jobs_for_runner:SplitRamp"


def planner(job: str = COSTLY, budget: float = 1e12, **history: float) -> Planner:
    known = Calibration(machine=Machine(), jobs={job: JobHistory(**history)})  # type: ignore[arg-type]
    return Planner(job_name=job, job=load_job(job), calibration=known, memory_budget_bytes=budget)


def widths(pack: Pack) -> set[object]:
    return {trial.settings()["width"] for trial in pack.trials}


trial_lists = st.lists(st.tuples(st.integers(1, 300), st.sampled_from([-1.0, 1.0])), min_size=1, max_size=60).map(
    lambda items: [ramp(SPLIT_BY, width=w, slope=s, replicate=r) for r, (w, s) in enumerate(items)]
)


@given(trials=trial_lists, workers=st.integers(1, 20))
@settings(max_examples=40)
def test_every_trial_is_in_one_pack_of_its_own_key_longest_first(trials: list[Trial], workers: int) -> None:
    packs = planner(SPLIT_BY).plan(trials, workers=workers)
    assert sorted(t.id for p in packs for t in p.trials) == sorted(t.id for t in trials)
    for pack in packs:
        assert len({trial.settings()["slope"] for trial in pack.trials}) == 1
    seconds = [pack.seconds for pack in packs]
    assert seconds == sorted(seconds, reverse=True)


@given(trials=trial_lists, budget=st.floats(1e6, 1e10))
@settings(max_examples=40)
def test_a_pack_fits_the_memory_or_is_a_single_trial(trials: list[Trial], budget: float) -> None:
    for pack in planner(SPLIT_BY, budget).plan(trials, workers=2):
        assert pack.memory_bytes <= budget * 1.001 or len(pack.trials) == 1


@given(runs=st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 9)), min_size=1, max_size=8), w=st.integers(1, 9))
def test_a_makespan_is_at_least_the_fair_share_and_within_graham_s_bound(runs: list[tuple[float, int]], w: int) -> None:
    total = math.fsum(seconds * count for seconds, count in runs)
    longest = max(seconds for seconds, _ in runs)
    end = makespan(runs, w)
    assert end >= max(total / w, longest) * (1 - 1e-9)
    assert end <= (total / w + longest) * (1 + 1e-9)


def test_launch_bound_trials_share_packs_and_no_worker_idles() -> None:
    trials = [ramp(COSTLY, width=4, replicate=r) for r in range(1000)]
    packs = planner().plan(trials, workers=2)
    alone = len(trials) * planner().pack((trials[0],)).seconds
    together = sum(pack.seconds for pack in packs)
    assert together < alone / 10
    assert makespan([(pack.seconds, 1) for pack in packs], 2) < 1.1 * together / 2


def test_similar_widths_share_a_pack_by_padding_and_different_ones_do_not() -> None:
    alike = planner().plan([ramp(COSTLY, width=w) for w in (4, 5, 6)], workers=1)
    assert [widths(pack) for pack in alike] == [{4, 5, 6}]
    apart = planner().plan([ramp(COSTLY, width=w, replicate=r) for w in (2, 2000) for r in range(8)], workers=1)
    assert all(len(widths(pack)) == 1 for pack in apart)


def test_every_worker_gets_a_pack() -> None:
    trials = [ramp(COSTLY, width=300, replicate=r) for r in range(64)]
    assert len(planner().plan(trials, workers=16)) >= 16


def test_packs_of_unknown_cost_become_smaller_towards_the_end() -> None:
    trials = [ramp(RAMP, replicate=r) for r in range(5000)]
    sizes = [len(pack.trials) for pack in planner(RAMP).plan(trials, workers=2)]
    assert sum(sizes) == 5000
    assert max(sizes) <= UNKNOWN_COST_PACK
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert [len(p.trials) for p in planner(RAMP).plan(trials[:2], workers=2)] == [1, 1]


def test_a_split_keeps_all_trials_in_order() -> None:
    trials = [ramp(COSTLY, replicate=r) for r in range(7)]
    halves = planner().split(trials)
    assert [len(pack.trials) for pack in halves] == [4, 3]
    assert [t.id for pack in halves for t in pack.trials] == [t.id for t in trials]


def test_the_times_of_a_run_correct_the_next_estimate() -> None:
    trials = [ramp(COSTLY, width=50, replicate=r) for r in range(40)]
    first = planner()
    estimate = sum(pack.seconds for pack in first.plan(trials, workers=1))
    learnt = after_run(Calibration(), trials, measured_over_counted=3)
    assert learnt.ratio == pytest.approx(3)
    second = planner(ratio=learnt.ratio)
    again = sum(pack.seconds for pack in second.plan(trials, workers=1))
    assert again == pytest.approx(3 * estimate, rel=0.05)
    assert after_run(Calibration(jobs={COSTLY: learnt}), trials, measured_over_counted=3).ratio == pytest.approx(3)
    assert after_run(Calibration(jobs={COSTLY: learnt}), trials, measured_over_counted=12).ratio == pytest.approx(6)


def after_run(known: Calibration, trials: list[Trial], *, measured_over_counted: float) -> JobHistory:
    """The job's history after a run of these trials."""
    tally = Tally()
    for pack in planner().plan(trials, workers=1):
        tally.add(pack, measured_over_counted * pack.counted_s)
    return known.with_run(COSTLY, "sweep", tally, 1.0, 0.1, None).job(COSTLY)


def test_a_job_without_a_cost_is_estimated_from_its_last_run() -> None:
    trials = [ramp(RAMP, replicate=r) for r in range(10)]
    new = planner(RAMP)
    assert new.estimate_s(new.plan(trials, workers=2), workers=2) is None
    known = planner(RAMP, trial_s=2.0, runs=1)
    assert known.estimate_s(known.plan(trials, workers=2), workers=2) == pytest.approx(10.0, rel=0.05)


def test_a_plan_states_its_packs_and_rows_and_that_nothing_was_measured() -> None:
    trials = [ramp(COSTLY, replicate=r) for r in range(6)]
    plan = planner()
    assert plan.record_rows(trials) == 6 * STEPS * 2
    assert not plan.measured
    packs = plan.plan(trials, workers=2)
    lines = plan_lines(plan, packs, workers=2, inline=False, slowdown=1.0)
    assert lines[0].startswith(f"packs     {len(packs)}, of ")
    assert lines[1] == "workers   2 on cpu"
    assert "from default speeds: this machine was not measured" in lines[2]
    assert lines[-1] == f"rows      {6 * STEPS * 2} in MLflow"


def test_a_calibration_is_stored_and_a_broken_file_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = Calibration(machine=Machine(launch_s=1.0, measured=True), jobs={"j": JobHistory(ratio=2.0)}, startup_s=3.0)
    calibration.save(kept)
    assert calibration.load("cpu") == kept
    calibration.cache_file("cpu").write_text("{not json")
    assert calibration.load("cpu", probe=False) == Calibration()


def test_seconds_are_the_sum_over_all_counts() -> None:
    machine = Machine(launch_s=2.0, matmul_flop_per_s=4.0, element_s=8.0)
    cost = Cost(launches=1, matmul_flop=2, element_visits=3, memory_bytes=0, seconds=5)
    assert machine.seconds(cost) == 2 + 0.5 + 24 + 5


def test_a_pack_launches_on_a_gpu_what_it_launches_there() -> None:
    many = Cost(launches=50, gpu_launches=5, matmul_flop=0, element_visits=0, memory_bytes=0)
    assert [Machine(launch_s=2.0, device=device).seconds(many) for device in ("cpu", "cuda")] == [100, 10]
    own = Cost(launches=50, matmul_flop=0, element_visits=0, memory_bytes=0)
    assert Machine(launch_s=2.0, device="cuda").seconds(own) == 100


@pytest.mark.slow
def test_the_probe_measures_this_machine() -> None:
    measured = calibration.measure("cpu")
    assert measured.measured
    assert 1e-8 < measured.launch_s < 1e-2
    assert measured.matmul_flop_per_s > 1e8


def test_a_machine_that_cannot_be_measured_gets_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert calibration.measure("cuda") == calibration.DEFAULT_CUDA
    assert subprocess.run([str(broken)]).returncode == 1
