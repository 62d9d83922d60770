"""The pool's decisions, on an engine that does what the tests say."""

from __future__ import annotations

import pytest

from orchestrator.checkpoints.saving import ASK_AFTER_S, Saving
from orchestrator.dispatch.base import Cause, PackEnded, PackProgress, PackTask
from orchestrator.dispatch.health import (
    EXCLUDED_S,
    FAILURES_BEFORE_PAUSE,
    STILLBORN_LIMIT,
    STILLBORN_LIMIT_OF_CLUSTER,
    NodeHealth,
)
from orchestrator.dispatch.placement import ALONE_S, AVOID_S, TAKE_BACK_S
from orchestrator.dispatch.pool import FAILURES_BEFORE_REPLACEMENT, GRACE_S, LOOK_S
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
    assert bench.engine.requested == [3, 0]


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
