"""The pool's decisions, on an engine that does what the tests say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.checkpoints.saving import ASK_AFTER_S, Saving
from orchestrator.dispatch.base import Cause, PackEnded, PackProgress, PackTask
from orchestrator.dispatch.engine import NodeRoom
from orchestrator.dispatch.health import (
    DEVICE_ERRORS_BEFORE_EXCLUSION,
    EXCLUDED_S,
    FAILURES_BEFORE_PAUSE,
    STILLBORN_LIMIT,
    STILLBORN_LIMIT_OF_CLUSTER,
    NodeHealth,
)
from orchestrator.dispatch.placement import ALONE_S, AVOID_S, TAKE_BACK_S
from orchestrator.dispatch.pool import FAILURES_BEFORE_REPLACEMENT, GRACE_S, LOOK_S, RELEASE_S
from orchestrator.dispatch.roster import GONE_S
from orchestrator.errors import Outage, UserError
from tests.scripted_engine import Bench, scripted_task

# --- packs ---


def test_each_worker_gets_one_pack_and_then_a_second() -> None:
    bench = Bench(A=2)
    bench.ready()
    bench.submit("1", "2", "3", "4", "5")
    assert sorted(bench.engine.packs.values()) == [["1", "3"], ["2", "4"]]
    bench.engine.end("1")
    bench.poll()
    assert sorted(bench.engine.packs.values()) == [["2", "4"], ["3", "5"]]


def test_a_pack_behind_a_long_one_moves_to_an_idle_worker() -> None:
    bench = Bench(A=2)
    bench.ready()
    bench.submit("long", "short", "waits")
    bench.engine.end("short")
    if bench.engine.holder("waits") == bench.engine.holder("long"):
        bench.poll(2 * TAKE_BACK_S)
    assert bench.engine.holder("waits") != bench.engine.holder("long")


def test_events_of_a_pack_that_was_taken_back_are_those_of_its_new_worker() -> None:
    bench = Bench(A=2)
    bench.ready()
    bench.submit("1", "2", "3", "4")
    bench.engine.end("2")
    bench.poll()
    bench.engine.end("4")
    bench.poll(2 * TAKE_BACK_S)
    bench.engine.end("3")
    events = bench.poll()
    assert [type(event) for event in events] == [PackProgress, PackEnded]


@pytest.mark.parametrize("cause", [Cause.WORKER_LOST, Cause.NODE_LOST, Cause.OUT_OF_MEMORY])
def test_a_dead_worker_loses_the_pack_that_ran_and_the_other_one_runs_on(cause: Cause) -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit("1", "2")
    bench.engine.die(1, cause)
    assert bench.failures(bench.poll()) == [("1", cause, "A")]
    if cause is not Cause.NODE_LOST:
        assert bench.said == ["a worker on host A is replaced: its process has died"]
    bench.poll()
    bench.ready()
    assert bench.engine.packs == {2: ["2"]}


def test_a_retry_avoids_its_node_and_needs_no_fresh_worker_on_another() -> None:
    bench = Bench(A=1, B=1)
    bench.ready()
    bench.submit("1", "2")
    for pack in "12":
        bench.engine.end(pack)
    bench.poll()
    bench.submit(*(scripted_task(f"not {node}", avoid_nodes=frozenset(node), fresh_worker=True) for node in "AB"))
    where = {pack: bench.engine.where[bench.engine.holder(pack)] for pack in ("not A", "not B")}
    assert where == {"not A": "B", "not B": "A"}
    assert sorted(bench.engine.where) == [1, 2]


def test_a_retry_waits_for_the_other_node_while_it_is_busy() -> None:
    bench = Bench(A=1, B=1)
    bench.ready()
    bench.submit("1", "2")
    on_b = next(pack for pack in "12" if bench.engine.where[bench.engine.holder(pack)] == "B")
    on_a = "21"[int(on_b) - 1]
    bench.submit(scripted_task("retry", avoid_nodes=frozenset("A"), fresh_worker=True))
    bench.engine.end(on_a, "ValueError: no")
    bench.poll(AVOID_S + 5)
    assert all("retry" not in packs for packs in bench.engine.packs.values())
    bench.engine.end(on_b)
    bench.poll()
    assert bench.engine.where[bench.engine.holder("retry")] == "B"


def test_a_retry_does_not_wait_for_ever_if_its_node_is_fine() -> None:
    bench = Bench(A=1, B=1)
    bench.ready()
    bench.submit("1", "2")
    on_a = next(pack for pack in "12" if bench.engine.where[bench.engine.holder(pack)] == "A")
    bench.submit(scripted_task("retry", avoid_nodes=frozenset("A"), fresh_worker=True))
    bench.engine.end(on_a)
    bench.poll(AVOID_S + 5)
    bench.ready()
    assert bench.engine.where[bench.engine.holder("retry")] == "A"
    assert bench.engine.holder("retry") > 2  # in a fresh worker


def test_with_one_node_a_retry_gets_a_fresh_worker_and_others_keep_theirs() -> None:
    bench = Bench(A=2)
    bench.ready()
    bench.submit("1", "2")
    bench.engine.end("1", "ValueError: no")
    bench.poll()
    bench.submit(scripted_task("retry", avoid_nodes=frozenset("A"), fresh_worker=True), "3")
    assert bench.engine.where == {2: "A", 3: "A"}
    bench.ready()
    assert bench.engine.packs == {2: ["2", "3"], 3: ["retry"]}


def test_a_single_worker_moves_to_the_other_node_for_a_retry() -> None:
    bench = Bench(workers=1, A=1, B=1)
    bench.ready()
    (node,) = bench.engine.where.values()
    bench.submit(scripted_task("retry", avoid_nodes=frozenset(node), fresh_worker=True))
    bench.ready()
    assert bench.engine.where[bench.engine.holder("retry")] != node


def test_a_pack_that_should_run_alone_waits_for_the_others_and_keeps_them_away() -> None:
    bench = Bench(A=2)
    bench.ready()
    bench.submit("1", scripted_task("big", fresh_worker=True, alone=True), "2", "3")
    for pack in "123":
        assert all("big" not in packs for packs in bench.engine.packs.values())
        bench.engine.end(pack)
        bench.poll()
    bench.ready()
    big = bench.engine.holder("big")
    assert big > 2
    bench.submit("4")
    bench.poll(5)
    assert bench.engine.packs[big] == ["big"]
    assert sum(map(len, bench.engine.packs.values())) == 1
    bench.engine.end("big")
    bench.poll()
    assert sum(packs == ["4"] for packs in bench.engine.packs.values()) == 1


def test_a_hanging_neighbour_delays_a_pack_that_should_run_alone_only_for_a_while() -> None:
    bench = Bench(A=2)
    bench.ready()
    bench.submit("hangs", scripted_task("big", fresh_worker=True, alone=True))
    bench.poll(ALONE_S + 5)
    bench.ready()
    assert bench.engine.holder("big") != bench.engine.holder("hangs")


# --- workers ---


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "RuntimeError: CUDA error: device-side assert triggered",
        "torch.AcceleratorError: unspecified launch failure",
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_worker_whose_device_is_broken_is_replaced_at_once(error: str, whole: bool) -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit("1", "2")
    if whole:
        bench.engine.fail("1", error)
    else:
        bench.engine.end("1", error)
    bench.poll()
    bench.ready()
    assert bench.engine.packs == {2: ["2"]}
    assert bench.said == ["a worker on host A is replaced: its device reports an error"]


DEVICE_ERROR = "RuntimeError: CUDA error: an illegal memory access was encountered"


def fail_on(bench: Bench, gpu: str) -> None:
    """The newest worker meets an error of its device; the one that follows it is given this GPU."""
    bad = max(bench.engine.where)
    packs = [f"pack {worker}" for worker in bench.engine.where]
    bench.submit(*packs)
    for pack in packs:
        bench.engine.end(pack, DEVICE_ERROR if bench.engine.holder(pack) == bad else None)
    bench.poll()
    bench.engine.ready(max(bench.engine.where), gpu=gpu)
    bench.poll()


def bench_of_gpus(count: int = 2) -> Bench:
    bench = Bench(A=count)
    for number in range(count):
        bench.engine.ready(number + 1, gpu=str(number))
    bench.poll()
    return bench


def test_a_gpu_on_which_workers_fail_in_a_row_gets_no_packs() -> None:
    """Its last worker lives, without packs: otherwise the next one would be given the same GPU."""
    bench = bench_of_gpus()
    for _ in range(DEVICE_ERRORS_BEFORE_EXCLUSION):
        fail_on(bench, "1")
    assert (
        bench.said[-1]
        == "GPU 1 of host A gets no packs for 30 minutes: the last 3 workers on it met an error of the device"
    )
    shelved = max(bench.engine.where)
    bench.submit("a", "b", "c")
    bench.poll(5.0)
    assert bench.engine.packs[1] and not bench.engine.packs[shelved]
    assert len(bench.engine.where) == 2


def test_a_gpu_without_packs_is_tried_again_after_half_an_hour() -> None:
    """Trials may have failed there by their own fault: settings that are wrong are neighbours in a grid."""
    bench = bench_of_gpus()
    for _ in range(DEVICE_ERRORS_BEFORE_EXCLUSION):
        fail_on(bench, "1")
    shelved = max(bench.engine.where)
    bench.poll(EXCLUDED_S - 60.0)
    bench.submit("a", "b")
    assert not bench.engine.packs[shelved]
    bench.engine.end("a")
    bench.poll()
    bench.poll(60.0)
    bench.poll(10.0)
    bench.submit("c")
    assert bench.engine.packs[shelved]
    bench.said.clear()
    bench.engine.end(bench.engine.packs[shelved][0], DEVICE_ERROR)
    bench.poll()
    bench.engine.ready(max(bench.engine.where), gpu="1")
    bench.submit("d")
    assert not bench.engine.packs[max(bench.engine.where)], "one further error is enough"


def bench_with_a_shelved_worker(*, room: int = 2, max_share: float = 1.0) -> tuple[Bench, int]:
    """Two workers, of which the second one's GPU gets no packs, and its number."""
    bench = Bench(A=room, max_share=max_share)
    for number in range(2):
        bench.engine.ready(number + 1, gpu=str(number))
    bench.poll()
    for _ in range(DEVICE_ERRORS_BEFORE_EXCLUSION):
        fail_on(bench, "1")
    return bench, max(bench.engine.where)


def test_a_worker_that_replaces_a_dead_one_on_a_bad_gpu_gets_no_packs_either() -> None:
    bench, shelved = bench_with_a_shelved_worker()
    bench.poll(EXCLUDED_S / 2)
    bench.engine.die(shelved)
    bench.poll(3 * LOOK_S)
    fresh = max(bench.engine.where)
    assert fresh > shelved
    bench.engine.ready(fresh, gpu="1")
    bench.poll()
    bench.submit("a", "b")
    bench.poll(5.0)
    assert bench.engine.packs[1] and not bench.engine.packs[fresh]
    bench.poll(EXCLUDED_S / 2 - 60.0)
    assert not bench.engine.packs[fresh]
    bench.poll(60.0 + 2 * LOOK_S)
    assert bench.engine.packs[fresh], "half an hour after the errors"


@pytest.mark.parametrize("first", ["0", "1"])
def test_of_workers_that_start_together_the_one_with_a_bad_gpu_gets_no_packs(first: str) -> None:
    """Whichever of them is ready first: a retry had a fresh worker started where the good GPU was."""
    bench, _ = bench_with_a_shelved_worker()
    bench.submit("first")
    bench.engine.end("first")
    bench.engine.die(1)
    bench.poll(3 * LOOK_S)
    earlier, later = sorted(bench.engine.where)
    bench.submit("a", "b")
    bench.engine.ready(earlier, gpu=first)
    bench.poll(1.0)
    bench.engine.ready(later, gpu="1" if first == "0" else "0")
    bench.poll(5.0)
    good, bad = (earlier, later) if first == "0" else (later, earlier)
    assert bench.engine.packs[good] and not bench.engine.packs[bad]


def test_a_worker_without_packs_is_none_that_packs_are_made_for() -> None:
    bench, shelved = bench_with_a_shelved_worker()
    assert len(bench.engine.where) == 2
    assert bench.pool.workers == 1
    bench.poll(EXCLUDED_S + LOOK_S)
    assert shelved in bench.engine.where
    assert bench.pool.workers == 2


def test_a_share_that_shrinks_ends_no_worker_that_holds_a_bad_gpu() -> None:
    """The next worker would be given that GPU."""
    bench, shelved = bench_with_a_shelved_worker(room=4, max_share=0.5)
    bench.engine.rooms["A"] = replace(bench.engine.rooms["A"], room=2)
    bench.poll(3 * LOOK_S)
    assert set(bench.engine.where) == {1, shelved}


def test_a_trial_that_finishes_on_a_gpu_clears_it() -> None:
    bench = bench_of_gpus()
    for _ in range(DEVICE_ERRORS_BEFORE_EXCLUSION - 1):
        fail_on(bench, "1")
    bench.submit("a", "b")
    for pack in ("a", "b"):
        bench.engine.end(pack)
    bench.poll()
    fail_on(bench, "1")
    assert "gets no packs" not in " ".join(bench.said)


def test_a_worker_that_was_started_for_a_bad_gpu_and_has_another_one_gets_packs() -> None:
    bench = bench_of_gpus()
    for _ in range(DEVICE_ERRORS_BEFORE_EXCLUSION - 1):
        fail_on(bench, "1")
    fail_on(bench, "2")
    bench.submit("a", "b")
    bench.poll()
    assert all(bench.engine.packs.values())


def test_a_retry_waits_for_a_gpu_without_errors() -> None:
    bench = bench_of_gpus()
    fail_on(bench, "1")
    bench.submit("long")
    assert bench.engine.holder("long") == 1
    bench.submit(scripted_task("retry", fresh_worker=True))
    bench.poll(1.0)
    assert not any("retry" in packs for packs in bench.engine.packs.values())
    bench.engine.end("long")
    bench.poll()
    bench.engine.ready(max(bench.engine.where), gpu="0")
    bench.poll()
    assert bench.engine.where[bench.engine.holder("retry")] == "A"
    assert bench.engine.holder("retry") == max(bench.engine.where)


def test_a_fresh_worker_that_has_got_the_bad_gpu_does_not_take_the_retry() -> None:
    bench = bench_of_gpus(3)
    fail_on(bench, "2")
    bench.submit(scripted_task("retry", fresh_worker=True))
    bench.poll()
    bench.engine.ready(max(bench.engine.where), gpu="2")
    bench.poll()
    assert not any("retry" in packs for packs in bench.engine.packs.values())


def test_the_last_worker_gets_packs_even_on_a_bad_gpu() -> None:
    bench = bench_of_gpus()
    for _ in range(DEVICE_ERRORS_BEFORE_EXCLUSION):
        fail_on(bench, "1")
    bench.engine.die(1)
    bench.engine.rooms["A"] = replace(bench.engine.rooms["A"], room=1)
    bench.poll(10.0)
    bench.ready()
    bench.submit("a")
    bench.poll(1.0)
    assert ["a"] in bench.engine.packs.values()


def test_a_worker_that_fails_while_others_succeed_is_replaced() -> None:
    bench = Bench(A=2)
    bench.ready()
    rounds = 0
    while 1 in bench.engine.where:
        rounds += 1
        bench.submit(f"{rounds} x", f"{rounds} y")
        for worker, packs in list(bench.engine.packs.items()):
            bench.engine.end(packs[0], "ValueError: no" if worker == 1 else None)
        bench.poll()
    assert rounds == FAILURES_BEFORE_REPLACEMENT
    assert bench.said == [f"a worker on host A is replaced: {rounds} failures in a row"]


def test_workers_are_kept_where_everything_fails() -> None:
    bench = Bench(A=1)
    bench.ready()
    for n in range(5 * FAILURES_BEFORE_REPLACEMENT):
        bench.submit(f"{n}")
        bench.engine.end(f"{n}", "ValueError: no")
        bench.poll(10)
    assert bench.engine.where == {1: "A"}


# --- nodes ---


def test_a_node_where_workers_die_while_starting_is_tried_more_and_more_rarely() -> None:
    bench = Bench(A=1, B=1)
    bench.engine.ready(next(worker for worker, node in bench.engine.where.items() if node == "A"))
    for _ in range(3000):
        for worker, node in list(bench.engine.where.items()):
            if node == "B":
                bench.engine.die(worker)
        bench.poll(1)
    assert STILLBORN_LIMIT < bench.engine.started.count("B") < 25
    assert list(bench.engine.where.values()).count("A") == 1


def all_die(bench: Bench) -> None:
    """Every worker dies while it starts."""
    for _ in range(200):
        for worker in list(bench.engine.where):
            bench.engine.die(worker, error="ModuleNotFoundError: no such module")
        bench.poll(1)


@pytest.mark.parametrize(("others", "where"), [({"B": 1}, "on each of 2 nodes"), ({}, "on node host A")])
def test_a_cluster_on_which_no_worker_lives_is_waited_for_and_is_an_outage(others: dict[str, int], where: str) -> None:
    """A sound node may join meanwhile, or before the next attempt."""
    bench = Bench(A=2, **others)
    bench.submit("1")
    began = bench.engine.now
    with pytest.raises(Outage, match="no such module") as ended:
        all_die(bench)
    assert 60 < bench.engine.now - began < 120
    assert f"{STILLBORN_LIMIT_OF_CLUSTER} times in a row {where}" in ended.value.text
    assert "--working-dir" in ended.value.next_step
    assert bench.engine.started.count("A") <= 2 + STILLBORN_LIMIT_OF_CLUSTER
    assert any("workers died while starting on host A" in line and "next attempt in" in line for line in bench.said)
    assert any("3 times in a row" in line and "another node may join meanwhile" in line for line in bench.said)


def test_a_sound_node_that_joins_a_bad_one_saves_the_run() -> None:
    bench = Bench(A=1)
    bench.submit("1")
    for _ in range(20):
        for worker in list(bench.engine.where):
            bench.engine.die(worker)
        bench.poll(1)
    bench.engine.rooms |= Bench(B=1).engine.rooms
    bench.poll(LOOK_S + 1)
    bench.engine.ready(next(worker for worker, node in bench.engine.where.items() if node == "B"))
    bench.poll()
    assert bench.pool.running() == ["1"]


def test_a_machine_on_which_no_worker_lives_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no such module") as ended:
        all_die(bench := Bench(grows=False, A=2))
    assert "3 times in a row on this machine" in ended.value.text
    assert bench.engine.started.count("A") <= 2 + STILLBORN_LIMIT


def test_a_bad_node_is_mentioned_when_it_first_fails_and_when_it_goes_on_to_fail() -> None:
    bench = Bench(A=1, B=3)
    bench.engine.ready(next(worker for worker, node in bench.engine.where.items() if node == "A"))
    for _ in range(300):
        for worker, node in list(bench.engine.where.items()):
            if node == "B":
                bench.engine.die(worker, error="ModuleNotFoundError: no such module")
                bench.poll()
        bench.poll(1)
    first, further = bench.said
    assert first.startswith("a worker on host B died while starting (ModuleNotFoundError: no such module)")
    assert "it is tried again after a pause; next, if it happens again: every node needs phasefront" in first
    assert "3 times in a row" in further and "trials run on other nodes; next: every node needs phasefront" in further


def test_workers_that_never_start_beside_others_are_mentioned_once_for_each_node() -> None:
    bench = Bench(A=1, B=3)
    bench.engine.ready(next(worker for worker, node in bench.engine.where.items() if node == "A"))
    bench.poll(100)
    bench.engine.ready(next(worker for worker, node in bench.engine.where.items() if node == "B"))
    bench.poll(200)
    (said,) = bench.said
    assert said.startswith("3 workers are still starting on host B after 60 s")
    assert "logs" in said


def test_workers_that_die_together_while_starting_count_once() -> None:
    bench = Bench(A=8)
    for worker in list(bench.engine.where)[:4]:
        bench.engine.die(worker)
    bench.engine.ready(*bench.engine.where)
    bench.poll(10)
    bench.ready()
    bench.poll(10)
    assert len(bench.engine.where) == 8


def test_a_node_that_joins_gets_workers_and_one_that_leaves_is_replaced() -> None:
    bench = Bench(workers=2, A=2)
    bench.ready()
    assert sorted(bench.engine.where.values()) == ["A", "A"]
    bench.submit("1", "2")
    del bench.engine.rooms["A"]
    bench.engine.rooms["B"] = bench.engine.nodes().get("B") or Bench(B=2).engine.rooms["B"]
    events = bench.poll(GONE_S + 15)
    assert sorted(bench.failures(events)) == [("1", Cause.NODE_LOST, "A"), ("2", Cause.NODE_LOST, "A")]
    assert sorted(bench.engine.where.values()) == ["B", "B"]
    assert bench.said == ["node host A was lost; its trials are run again"]


def test_a_node_whose_failures_succeed_elsewhere_is_excluded_and_it_is_said() -> None:
    bench = Bench(A=1, B=1)
    bench.ready()
    for n in range(3):
        bench.submit(scripted_task(f"{n}", avoid_nodes=frozenset("A"), fresh_worker=True))
        bench.engine.end(f"{n}")
        bench.poll()
    bench.poll(6)
    assert list(bench.engine.where.values()) == ["B"]
    assert bench.said == [
        "node host A is excluded for 30 minutes: trials that failed there succeed on other nodes",
    ]
    bench.poll(EXCLUDED_S + 10)
    assert sorted(bench.engine.where.values()) == ["A", "B"]


def test_the_last_node_is_never_excluded() -> None:
    bench = Bench(A=1, B=1)
    bench.ready()
    for n in range(3):
        bench.submit(scripted_task(f"{n}", avoid_nodes=frozenset("A"), fresh_worker=True))
        bench.engine.end(f"{n}")
        bench.poll()
    for worker in list(bench.engine.where):
        bench.engine.die(worker, Cause.NODE_LOST)
    del bench.engine.rooms["B"]
    bench.poll(6)
    assert list(bench.engine.where.values()) == ["A"]


def test_a_node_that_fails_repeatedly_pauses_while_another_one_is_fine() -> None:
    bench = Bench(A=1, B=1)
    bench.ready()
    taken = 0
    for n in range(20):
        bench.submit(f"{n} x", f"{n} y")
        for worker, packs in list(bench.engine.packs.items()):
            for pack in list(packs):
                bad = bench.engine.where[worker] == "A"
                taken += bad
                bench.engine.end(pack, "OSError: disk full" if bad else None)
        bench.poll(0.2)
    assert FAILURES_BEFORE_PAUSE <= taken <= 8


def test_one_success_clears_the_failures_of_a_node() -> None:
    health = NodeHealth()
    for _ in range(FAILURES_BEFORE_PAUSE):
        health.failed("A", workers=1, now=0.0)
    assert health.paused("A", 1.0)
    health.succeeded("A", began=0.0)
    assert not health.paused("A", 1.0)
    assert health.failures("A") == 0


def test_a_success_that_began_before_a_failure_does_not_prove_a_node() -> None:
    health = NodeHealth()
    health.failed("A", workers=1, now=10.0)
    health.succeeded("A", began=9.0)
    assert not health.is_proved("A")
    health.succeeded("A", began=10.0)
    assert health.is_proved("A")


def test_trials_that_fail_now_and_then_exclude_no_node() -> None:
    health = NodeHealth()
    for _ in range(200):
        for _ in range(4):
            health.succeeded("A", began=0.0)
        assert not health.refuted("A", 0.0)


# --- deadlines ---


def test_a_pack_that_exceeds_its_time_is_killed_and_the_one_behind_it_runs_on() -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit(scripted_task("hangs", timeout_s=100.0), "next")
    assert bench.failures(bench.poll(100)) == []
    assert bench.failures(bench.poll(GRACE_S + 2)) == [("hangs", Cause.TIMED_OUT, "A")]
    bench.ready()
    assert bench.engine.packs == {2: ["next"]}


def test_the_time_is_that_of_each_trial_of_a_pack() -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit(scripted_task("p", timeout_s=100.0, trial_ids=("a", "b", "c")))
    for trial in "abc":
        assert bench.failures(bench.poll(90)) == []
        bench.engine.result("p", trial)


def test_a_worker_that_reports_a_hanging_trial_is_replaced() -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit("1", "2")
    bench.engine.fail("1", "TimeoutError", Cause.TIMED_OUT)
    bench.poll()
    bench.ready()
    assert bench.engine.packs == {2: ["2"]}
    assert bench.said == ["a worker on host A is replaced: its trial has exceeded resources.trial_timeout"]


def test_a_driver_that_was_stopped_blames_nobody() -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit(scripted_task("p", timeout_s=100.0))
    bench.poll(20)
    bench.engine.now += 10_000
    assert bench.failures(bench.poll(30)) == []
    assert bench.said == []


# --- what is said ---


def test_a_silent_pack_is_mentioned_with_growing_intervals() -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit("abc")
    bench.poll(1000)
    assert [text.split(" for ")[1].split()[0] for text in bench.said] == ["60", "120", "240", "480", "960"]
    assert bench.said[0] == "no news from trial abc on host A for 60 s; resources.trial_timeout sets a limit"


def test_a_pack_that_is_expected_to_take_long_may_be_silent_for_longer() -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.submit(scripted_task("abc", expected_s=60.0))
    bench.poll(590)
    assert bench.said == []


def test_a_cluster_without_a_node_is_waited_for_and_asked_to_grow() -> None:
    bench = Bench(workers=3)
    bench.submit("1")
    bench.poll(100)
    assert bench.engine.requested == [3]
    assert len(bench.said) == 2
    assert bench.said[0].startswith(
        "waiting for the cluster to grow: no node has room for a worker, which needs 4 CPUs"
    )
    assert "(3 requested)" in bench.said[0]
    bench.engine.rooms = Bench(A=3).engine.rooms
    bench.poll(6)
    bench.ready()
    assert bench.pool.running() == ["1"]
    assert bench.engine.requested == [3], "an autoscaler removes idle nodes, and their workers had not started"
    bench.poll(LOOK_S + 1)
    assert bench.engine.requested == [3, 0]


def test_a_node_that_leaves_while_its_worker_has_no_pack_is_no_loss() -> None:
    """As when an autoscaler removes one on which a worker has just been started."""
    bench = Bench(A=1, B=1)
    bench.ready()
    bench.submit("1")
    (idle,) = {"A", "B"} - {bench.engine.where[bench.engine.holder("1")]}
    del bench.engine.rooms[idle]
    assert bench.poll(GONE_S + 15) == []
    assert len(bench.engine.where) == 1
    assert bench.said == [f"node host {idle} has left; no trial ran there"]


def test_an_empty_cluster_is_asked_for_a_worker_before_the_first_pack_is_planned() -> None:
    bench = Bench()
    assert bench.engine.requested == [1]
    bench.submit("1", "2", "3")
    bench.poll(LOOK_S + 1)
    assert bench.engine.requested == [1, 3]


def test_packs_behind_others_are_worth_another_worker() -> None:
    """A cluster grows while packs wait for busy workers, wherever they wait."""
    bench = Bench(A=1)
    bench.ready()
    bench.submit("1", "2")
    bench.poll(LOOK_S + 1)
    assert bench.engine.packs[bench.engine.holder("1")] == ["1", "2"] and bench.engine.requested == [2]
    bench.engine.rooms["B"] = NodeRoom(name="host B", room=1)
    bench.poll(LOOK_S + 1)
    bench.ready()
    bench.poll(2 * TAKE_BACK_S)
    assert len({bench.engine.holder("1"), bench.engine.holder("2")}) == 2
    bench.poll(LOOK_S + 1)
    assert bench.engine.requested == [2, 0]


def test_packs_are_planned_for_the_workers_that_a_cluster_is_asked_for() -> None:
    assert Bench(workers=4, A=1).pool.planned_workers == 4
    assert Bench(workers=4, grows=False, A=2).pool.planned_workers == 2
    assert Bench(A=2).pool.planned_workers == 2


def test_a_machine_without_room_is_a_mistake() -> None:
    with pytest.raises(UserError, match="needs 4 CPUs"):
        Bench(grows=False, A=0)


def test_workers_that_cannot_start_because_the_cluster_is_in_use_are_explained() -> None:
    bench = Bench(A=1)
    bench.engine.set_free(A=0)
    bench.poll(25)  # before the first pack: the driver waits for the pool to start
    bench.submit("1")
    bench.poll(15)
    (said,) = bench.said
    assert said.startswith("no worker has started: one needs 4 CPUs, and no node has that free")
    assert said.endswith("waiting for 30 s")


def test_a_worker_that_cannot_start_moves_to_a_node_with_free_resources() -> None:
    bench = Bench(workers=1, A=1, B=1)
    (node,) = bench.engine.where.values()
    (other,) = {"A", "B"} - {node}
    bench.engine.set_free(**{node: 0, other: 1})
    bench.poll(45)
    assert list(bench.engine.where.values()) == [other]


def test_ready_and_starting_workers_are_told_apart() -> None:
    bench = Bench(A=3)
    assert bench.pool.note == "0 of 3 workers ready"
    bench.engine.ready(1, 2)
    bench.poll()
    assert bench.pool.note == "2 of 3 workers ready"
    bench.engine.ready(3)
    bench.poll()
    assert bench.pool.note == ""


def test_closing_closes_the_engine_and_withdraws_the_request() -> None:
    bench = Bench(workers=3)
    bench.submit("1")
    bench.poll(6)
    bench.pool.close()
    bench.pool.close()
    assert bench.engine.closed
    assert bench.engine.requested == [3, 0]


def test_a_run_that_is_stopped_withdraws_the_request_before_it_waits_for_anything() -> None:
    bench = Bench(workers=3)
    bench.submit("1")
    bench.poll(6)
    bench.pool.prepare_to_close()
    assert bench.engine.requested == [3, 0] and not bench.engine.closed
    bench.pool.close()
    assert bench.engine.requested == [3, 0]


# --- checkpoints ---


SAVING = Saving(folder="shared", continues={})


def saved_task(pack_id: str) -> PackTask:
    return scripted_task(pack_id, saving=SAVING)


def test_the_workers_of_a_draining_node_are_asked_once_for_checkpoints() -> None:
    bench = Bench(A=2, B=1)
    bench.ready()
    bench.submit(saved_task("1"), saved_task("2"), saved_task("3"))
    bench.engine.drained = {"A"}
    bench.poll(LOOK_S)
    bench.poll(LOOK_S)
    assert sorted(bench.engine.asked) == sorted(w for w, node in bench.engine.where.items() if node == "A")


def test_a_draining_node_gets_no_new_pack_and_no_new_worker() -> None:
    """What trains there goes on; what waits there behind it goes elsewhere."""
    bench = Bench(A=2, B=1)
    bench.ready()
    bench.submit("1", "2", "3", "4", "5", "6")
    assert sorted(len(packs) for packs in bench.engine.packs.values()) == [2, 2, 2]
    on_a = {pack for w, node in bench.engine.where.items() if node == "A" for pack in bench.engine.packs[w][:1]}
    bench.engine.drained = {"A"}
    bench.poll(LOOK_S + 1)
    on_b = next(w for w, node in bench.engine.where.items() if node == "B")
    ran = list(on_a)
    for pack in on_a:
        bench.engine.end(pack)
        bench.poll(LOOK_S + 1)
    assert set(bench.engine.where.values()) == {"B"}
    while bench.engine.packs[on_b]:
        ran.append(bench.engine.packs[on_b][0])
        bench.engine.end(ran[-1])
        bench.poll(1.0)
    assert sorted(ran) == ["1", "2", "3", "4", "5", "6"]
    assert sorted(bench.engine.started) == ["A", "A", "B"], "none was started there again"


def test_where_every_node_drains_packs_wait_for_another_one() -> None:
    bench = Bench(A=1)
    bench.ready()
    bench.engine.drained = {"A"}
    bench.poll(LOOK_S + 1)
    assert bench.engine.where == {}
    bench.submit("1")
    bench.poll(LOOK_S + 1)
    assert bench.engine.where == {} and bench.engine.requested[-1] == 1, "it is asked for"
    bench.engine.rooms["B"] = NodeRoom(name="host B", room=1)
    bench.poll(LOOK_S + 1)
    bench.ready()
    assert bench.engine.where[bench.engine.holder("1")] == "B"


def test_idle_workers_of_a_cluster_are_released_and_come_back_with_the_next_packs() -> None:
    """So that an autoscaler can remove their nodes; one stays for a search that goes on."""
    bench = Bench(A=1, B=1, C=1)
    bench.ready()
    bench.submit("1", "2", "long")
    bench.engine.end("1")
    bench.engine.end("2")
    bench.poll(RELEASE_S - 2 * LOOK_S)
    assert len(bench.engine.where) == 3, "not at once"
    bench.poll(4 * LOOK_S)
    assert [bench.engine.holder("long")] == list(bench.engine.where)
    bench.poll(4 * LOOK_S)
    assert len(bench.engine.where) == 1
    bench.submit("3", "4")
    bench.poll(LOOK_S + 1)
    assert len(bench.engine.where) == 3
    bench.ready()
    bench.poll(2 * TAKE_BACK_S)
    assert len({bench.engine.holder(pack) for pack in ("long", "3", "4")}) == 3
    for pack in ("long", "3", "4"):
        bench.engine.end(pack)
    bench.poll(RELEASE_S + 2 * LOOK_S)
    assert len(bench.engine.where) == 1


def test_a_number_of_workers_that_was_set_is_not_asked_for_while_they_rest() -> None:
    bench = Bench(workers=4, A=1, B=1)
    bench.ready()
    bench.submit("1", "2")
    bench.poll(LOOK_S + 1)
    assert bench.engine.requested[-1] == 4
    bench.engine.end("1")
    bench.poll(RELEASE_S + 2 * LOOK_S)
    assert len(bench.engine.where) == 1 and bench.engine.requested[-1] == 0


def test_the_workers_of_one_machine_stay() -> None:
    bench = Bench(grows=False, A=2)
    bench.ready()
    bench.submit("1")
    bench.engine.end("1")
    bench.poll(RELEASE_S + 2 * LOOK_S)
    assert len(bench.engine.where) == 2


def test_a_pack_that_continues_waits_for_the_next_free_worker_the_longest_first() -> None:
    """Not behind another pack, whose worker may be busy for hours."""
    bench = Bench(A=1, B=1)
    bench.ready()
    continues = [
        scripted_task(f"{left}", expected_s=left, saving=replace(SAVING, continues={f"{left}": "file"}))
        for left in (3.0, 9.0, 6.0)
    ]
    bench.submit(scripted_task("a", expected_s=10.0), scripted_task("b", expected_s=10.0), *continues)
    assert sorted(bench.engine.packs.values()) == [["a"], ["b"]]
    for running, then in (("a", "9.0"), ("b", "6.0"), ("9.0", "3.0")):
        bench.engine.end(running)
        bench.poll()
        assert bench.engine.packs[bench.engine.holder(then)] == [then]


def test_a_stopped_run_waits_for_the_packs_that_are_worth_it() -> None:
    bench = Bench(A=3)
    bench.ready()
    bench.submit(saved_task("old"), scripted_task("not saved"))
    bench.poll(ASK_AFTER_S)
    bench.submit(saved_task("young"))
    bench.pool.prepare_to_close()
    assert bench.engine.asked == [bench.engine.holder("old")]
    began = bench.engine.now
    bench.engine.save("old")
    bench.pool.await_saved(60.0)
    assert bench.engine.now - began < 1.0
    bench.pool.prepare_to_close()
    bench.pool.await_saved(3.0)
    assert 3.0 <= bench.engine.now - began < 5.0, "one that does not answer is not waited for for long"


def test_packs_learn_how_long_nodes_live() -> None:
    bench = Bench(A=1, B=1)
    bench.ready()
    bench.submit(saved_task("1"), saved_task("2"))
    assert bench.engine.tasks["1"].saving == SAVING
    bench.poll(500.0)
    del bench.engine.rooms["A"]
    bench.engine.die(next(w for w, node in bench.engine.where.items() if node == "A"), Cause.NODE_LOST)
    bench.poll()
    bench.engine.end(bench.engine.packs[next(iter(bench.engine.where))][0])
    bench.poll()
    bench.submit(saved_task("3"))
    saving = bench.engine.tasks["3"].saving
    assert saving is not None and saving.life_s is not None and 500.0 < saving.life_s < 2000.0


def test_packs_that_train_when_a_node_is_lost_learn_of_it_too() -> None:
    """They began when nodes seemed to stay, and would be saved every five minutes."""
    bench = Bench(A=1, B=1, C=1)
    bench.ready()
    bench.submit(saved_task("1"), saved_task("2"), saved_task("3"))
    bench.poll(300.0)

    def lose(node: str) -> None:
        del bench.engine.rooms[node]
        bench.engine.die(next(w for w, at in bench.engine.where.items() if at == node), Cause.NODE_LOST)
        bench.poll()

    lose("A")
    left = set(bench.engine.where)
    assert bench.engine.told.keys() == left and all(600 < life_s < 1200 for life_s in bench.engine.told.values())
    before = dict(bench.engine.told)
    bench.poll(10.0)
    lose("B")
    (last,) = bench.engine.where
    assert bench.engine.told[last] < before[last] / 1.5, "it is half as long as it seemed"


# A share of a cluster


@pytest.mark.parametrize(
    ("share", "workers", "started"), [(0.5, None, 4), (0.3, None, 2), (0.01, None, 1), (0.5, 3, 3)]
)
def test_a_sweep_takes_no_more_than_its_share(share: float, workers: int | None, started: int) -> None:
    bench = Bench(workers=workers, max_share=share, a=4, b=4)
    assert len(bench.engine.where) == started
    bench.ready()
    bench.poll(30.0)
    assert len(bench.engine.where) == started
    bench.engine.rooms["c"] = NodeRoom(name="host c", room=8)
    bench.poll(10.0)
    assert len(bench.engine.where) == (3 if workers else max(1, int(16 * share))), "its share of the nodes that joined"


def test_a_share_shrinks_with_the_cluster_when_packs_end() -> None:
    bench = Bench(max_share=0.5, a=1, b=1, c=1, d=1)
    bench.ready()
    assert len(bench.engine.where) == 2
    bench.submit("one", "two", "three")
    bench.poll(2.0)
    for node in {"a", "b", "c", "d"} - set(bench.engine.where.values()):
        del bench.engine.rooms[node]
    bench.poll(10.0)
    assert len(bench.engine.where) == 2, "no pack is lost"
    bench.engine.end("one")
    bench.poll(1.0)
    assert len(bench.engine.where) == 1
    bench.engine.end("two")
    bench.poll(2.0)
    assert bench.engine.holder("three") in bench.engine.where
    bench.engine.end("three")
    bench.poll(10.0)
    assert len(bench.engine.where) == 1


def test_a_share_of_an_autoscaled_cluster_is_asked_for_and_kept_while_packs_wait() -> None:
    """Nodes that are not asked for any more leave, and the share becomes smaller with each."""
    bench = Bench(max_share=0.5, a=1)
    bench.ready()
    bench.submit(*(f"{n}" for n in range(10)))
    bench.poll(LOOK_S + 1)
    assert bench.engine.requested == [5], "not room for all packs, of which it would use a half"
    for name in "bcde":
        bench.engine.rooms[name] = NodeRoom(name=f"host {name}", room=1)
    bench.poll(LOOK_S + 1)
    bench.ready()
    bench.poll(LOOK_S + 1)
    assert len(bench.engine.where) == 2
    assert bench.engine.requested == [5], "as long as packs wait"
    for _ in range(6):
        bench.engine.end(next(packs[0] for packs in bench.engine.packs.values() if packs))
        bench.poll()
    bench.poll(LOOK_S + 1)
    assert bench.engine.requested[-1] == 4, "two workers of a half are four"
    for _ in range(2):
        for packs in list(bench.engine.packs.values()):
            bench.engine.end(packs[0])
        bench.poll()
    bench.poll(LOOK_S + 1)
    assert bench.engine.requested[-1] == 0
