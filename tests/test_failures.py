"""Policies for failed packs."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatch.base import Cause
from orchestrator.failures import (
    IDENTICAL_FAILURES_BEFORE_STOP,
    LOSSES_BEFORE_BLAME,
    Attempt,
    FailureWatch,
    Remedy,
    decide,
    signature,
)
from orchestrator.printable import last_line


def error(message: str, line: int = 7) -> str:
    return f'Traceback (most recent call last):\n  File "job.py", line {line}, in train\nValueError: {message}\n'


ATTEMPTS = st.builds(
    Attempt,
    losses=st.integers(0, 10),
    avoid_nodes=st.frozensets(st.sampled_from("ABC")),
    alone=st.booleans(),
    error=st.sampled_from(["", error("x")]),
)


@given(cause=st.sampled_from(Cause), size=st.integers(1, 1000), attempt=ATTEMPTS)
def test_only_a_single_trial_ever_fails(cause: Cause, size: int, attempt: Attempt) -> None:
    remedy = decide(cause, size=size, attempt=attempt, error=error("x")).remedy
    assert remedy is not Remedy.FAIL or size == 1


@given(cause=st.sampled_from(sorted(set(Cause) - {Cause.OTHER_SOURCE})), size=st.integers(1, 1000))  # the pool's own
def test_a_first_failure_fails_no_trial(cause: Cause, size: int) -> None:
    assert decide(cause, size=size, attempt=Attempt(), error=error("x")).remedy is not Remedy.FAIL


def test_a_trial_whose_worker_was_frozen_is_retried_once_elsewhere() -> None:
    first = decide(Cause.TIMED_OUT, size=1, attempt=Attempt(), error="silent", node="A")
    assert (first.remedy, first.attempt.avoid_nodes, first.attempt.fresh_worker) == (Remedy.RETRY, {"A"}, True)
    assert decide(Cause.TIMED_OUT, size=1, attempt=first.attempt, error="silent").remedy is Remedy.FAIL


@given(size=st.integers(1, 1000), losses=st.integers(0, LOSSES_BEFORE_BLAME - 2))
def test_a_lost_worker_is_a_retry_until_the_pack_is_suspected(size: int, losses: int) -> None:
    decision = decide(Cause.WORKER_LOST, size=size, attempt=Attempt(losses=losses), error="")
    assert (decision.remedy, decision.attempt.losses) == (Remedy.RETRY, losses + 1)
    suspected = decide(Cause.WORKER_LOST, size=size, attempt=Attempt(losses=LOSSES_BEFORE_BLAME - 1), error="")
    assert suspected.remedy is (Remedy.FAIL if size == 1 else Remedy.SPLIT)


def test_a_pack_that_lost_workers_avoids_all_the_nodes_where_it_did() -> None:
    first = decide(Cause.WORKER_LOST, size=4, attempt=Attempt(), error="", node="A").attempt
    second = decide(Cause.WORKER_LOST, size=4, attempt=first, error="", node="B").attempt
    assert (first.avoid_nodes, second.avoid_nodes) == ({"A"}, {"A", "B"})


def test_a_trial_that_raised_and_then_loses_a_worker_avoids_the_node_where_it_raised() -> None:
    raised = decide(Cause.USER_ERROR, size=1, attempt=Attempt(), error=error("x"), node="A").attempt
    assert decide(Cause.WORKER_LOST, size=1, attempt=raised, error="", node="B").attempt.avoid_nodes == {"A"}


def test_a_pack_in_which_a_trial_has_ended_is_not_suspected() -> None:
    attempt = Attempt(losses=2, avoid_nodes=frozenset("A"))
    decision = decide(Cause.WORKER_LOST, size=4, attempt=attempt, error="", node="B", progressed=True)
    assert decision.attempt == Attempt(losses=1, avoid_nodes=frozenset("B"))


@given(size=st.integers(1, 1000), attempt=ATTEMPTS)
def test_a_lost_node_is_never_counted(size: int, attempt: Attempt) -> None:
    decision = decide(Cause.NODE_LOST, size=size, attempt=attempt, error="", node="A")
    assert (decision.remedy, decision.attempt) == (Remedy.RETRY, attempt)


def test_a_trial_that_raises_is_retried_once_elsewhere_and_fails_with_its_first_traceback() -> None:
    first = decide(Cause.USER_ERROR, size=1, attempt=Attempt(), error=error("first"), node="A")
    assert first.remedy is Remedy.RETRY
    assert first.attempt == Attempt(avoid_nodes=frozenset("A"), fresh_worker=True, error=error("first"))
    second = decide(Cause.USER_ERROR, size=1, attempt=first.attempt, error=error("second"), node="B")
    assert (second.remedy, second.error) == (Remedy.FAIL, error("first"))


def test_two_different_errors_are_both_in_the_failure() -> None:
    decision = decide(Cause.USER_ERROR, size=1, attempt=Attempt(error=error("first")), error=error("second", line=8))
    assert "ValueError: second" in decision.error
    assert last_line(decision.error) == "ValueError: first"


def test_a_trial_out_of_memory_is_retried_once_alone() -> None:
    first = decide(Cause.OUT_OF_MEMORY, size=1, attempt=Attempt(), error="no memory")
    assert first.remedy is Remedy.RETRY
    assert first.attempt == Attempt(fresh_worker=True, alone=True)
    second = decide(Cause.OUT_OF_MEMORY, size=1, attempt=first.attempt, error="no memory")
    assert second.remedy is Remedy.FAIL
    assert second.error.startswith("no memory. The trial does not fit into a worker's memory, even alone. Next: ")


def test_the_last_line_of_a_failure_has_its_cause_and_what_to_do() -> None:
    """Lists of failures show this line only."""
    last = Attempt(losses=9, alone=True)
    for cause, advice in ((Cause.OUT_OF_MEMORY, "fewer workers"), (Cause.WORKER_LOST, "--inline")):
        for text in ("Last output of the worker:\nstep 1\n\nthe process was killed.", error("the words")):
            failed = last_line(decide(cause, size=1, attempt=last, error=text).error)
            assert failed.startswith(last_line(text)) and advice in failed


def test_losses_that_differ_in_numbers_are_alike() -> None:
    texts = (f"the process {pid} died: {used} GB of 31 GB were in use" for pid, used in ((7, 30.1), (812, 29.87)))
    assert len({signature(text) for text in texts}) == 1


def test_a_failed_trial_keeps_its_error_message() -> None:
    last = Attempt(losses=9, alone=True, error=error("the words"))
    for cause in set(Cause) - {Cause.NODE_LOST}:
        assert "the words" in decide(cause, size=1, attempt=last, error=error("the words")).error


def test_a_trial_that_hangs_fails_with_the_name_of_the_setting() -> None:
    again = Attempt(error="silent")
    assert "resources.trial_timeout" in decide(Cause.TIMED_OUT, size=1, attempt=again, error="silent").error


def test_an_error_that_three_trials_raised_again_is_confirmed() -> None:
    watch = FailureWatch()
    told = []
    for n in range(4):
        told.append(watch.is_confirmed(error("x")))
        watch.raised_again(error(f"message {n}"))
    assert told == [False, False, False, True]
    assert not watch.is_confirmed(error("x", line=8))


def test_failures_are_alike_by_type_and_place_whatever_the_message() -> None:
    assert signature(error("a")) == signature(error("b"))
    assert signature(error("a")) != signature(error("a", line=8))
    assert last_line(error("a")) == "ValueError: a"
    assert last_line("") == "unknown error"


def test_a_sweep_that_only_fails_alike_is_given_up() -> None:
    watch = FailureWatch()
    told = [watch.failure(error(str(n))) for n in range(IDENTICAL_FAILURES_BEFORE_STOP)]
    assert told == [False] * (IDENTICAL_FAILURES_BEFORE_STOP - 1) + [True]


def test_one_success_is_enough_to_go_on() -> None:
    watch = FailureWatch()
    watch.success()
    assert not any(watch.failure(error("x")) for _ in range(100))


def test_failures_at_different_places_are_the_trials_own() -> None:
    watch = FailureWatch()
    assert not any(watch.failure(error("x", line=n)) for n in range(100))
