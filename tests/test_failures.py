"""Policies for failed packs."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatch.base import Cause
from orchestrator.failures import (
    IDENTICAL_FAILURES_BEFORE_STOP,
    LOSSES_BEFORE_BLAME,
    FailureWatch,
    Remedy,
    decide,
    last_line,
    signature,
)


def error(message: str, line: int = 7) -> str:
    return f'Traceback (most recent call last):\n  File "job.py", line {line}, in train\nValueError: {message}\n'


@given(cause=st.sampled_from(Cause), size=st.integers(1, 1000), losses=st.integers(1, 10))
def test_only_a_single_trial_ever_fails(cause: Cause, size: int, losses: int) -> None:
    remedy = decide(cause, size=size, losses=losses, error=error("x")).remedy
    assert remedy is not Remedy.FAIL or size == 1


@given(size=st.integers(1, 1000), losses=st.integers(1, LOSSES_BEFORE_BLAME - 1))
def test_a_lost_worker_is_a_free_retry_until_the_pack_is_suspected(size: int, losses: int) -> None:
    assert decide(Cause.WORKER_LOST, size=size, losses=losses, error="").remedy is Remedy.RETRY
    suspected = decide(Cause.WORKER_LOST, size=size, losses=LOSSES_BEFORE_BLAME, error="")
    assert suspected.remedy is (Remedy.FAIL if size == 1 else Remedy.SPLIT)


def test_a_failed_trial_keeps_its_error_message() -> None:
    for cause in Cause:
        assert "the words" in decide(cause, size=1, losses=9, error=error("the words")).error


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
