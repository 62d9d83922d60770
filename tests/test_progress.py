"""Progress output of a run."""

import io
import queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.progress import (
    Lines,
    Live,
    Rate,
    Snapshot,
    amount_of_bytes,
    duration,
    for_stream,
    line,
    still,
    time_left,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_shows_done_running_failed_rate_and_time_left() -> None:
    snapshot = Snapshot(total=512, skipped=20, done=100, running=16, failed=2, workers=2)
    assert line(snapshot, rate=8.4) == "120/512 done, 16 running, 2 failed, 8.4 trials/s, about 46 s left"


def test_without_a_rate_no_time_left_is_claimed() -> None:
    assert "left" not in line(Snapshot(total=5), rate=None)
    assert "left" not in line(Snapshot(total=5, done=5, workers=1), rate=1.0)


def test_durations_and_amounts_read_well() -> None:
    assert [duration(s) for s in (0.31, 47.2, 59.7, 200, 3599.6, 7500)] == [
        "0.3 s",
        "47 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
    assert [amount_of_bytes(b) for b in (12, 2.5e6, 3.2e9)] == ["12 B", "2.5 MB", "3.2 GB"]


@given(rate=st.floats(0.1, 1e4), seconds=st.integers(2, 300))
def test_a_steady_pace_is_measured_as_it_is(rate: float, seconds: int) -> None:
    meter = Rate()
    found = [meter.update(float(t), round(t * rate)) for t in range(seconds + 1)]
    expected = (round(seconds * rate) - round(max(0, seconds - 60) * rate)) / min(seconds, 60)
    assert found[-1] == (expected if expected else None)


def test_the_rate_follows_a_change_of_pace() -> None:
    meter = Rate()
    for t in range(200):
        meter.update(float(t), 10 * t)
    for t in range(200, 300):
        rate = meter.update(float(t), 2000 + (t - 200))
    assert rate == 1.0


def test_starting_workers_does_not_slow_the_rate() -> None:
    clock, out = Clock(), io.StringIO()
    lines = Lines(out, clock=clock, wall_clock=lambda: "12:00:00")
    lines.update(Snapshot(total=100, note="starting workers"))
    clock.now = 50.0
    lines.update(Snapshot(total=100, workers=1))
    clock.now = 60.0
    lines.update(Snapshot(total=100, done=20, workers=1))
    assert out.getvalue().splitlines()[-1] == ("12:00:00 20/100 done, 0 running, 0 failed, 2 trials/s, about 40 s left")


def test_lines_come_every_few_seconds_and_the_first_and_last_always() -> None:
    clock, out = Clock(), io.StringIO()
    lines = Lines(out, every_s=5, clock=clock, wall_clock=lambda: "t")
    for tick in range(120):
        clock.now = tick / 10
        lines.update(Snapshot(total=120, done=tick, workers=1))
    lines.close()
    lines.close()
    shown = [text.split()[1] for text in out.getvalue().splitlines()]
    assert shown == ["0/120", "50/120", "100/120", "119/120"]


def test_a_terminal_gets_a_live_display_and_a_log_gets_lines() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    live = for_stream(terminal)
    assert isinstance(live, Live)
    live.update(Snapshot(total=10, done=4, workers=1, phases={"grokking": 4}))
    live.say("a word")
    live.close()
    assert "4/10 done" in terminal.getvalue()
    assert "grokking 4" in terminal.getvalue()
    assert "a word" in terminal.getvalue()
    assert isinstance(for_stream(io.StringIO()), Lines)


@given(rate=st.floats(1e-3, 1e4), ended=st.integers(0, 99), planned=st.none() | st.floats(0.0, 1e6))
def test_the_time_left_is_never_below_the_value_from_the_rate(rate: float, ended: int, planned: float | None) -> None:
    left = time_left(Snapshot(total=100, done=ended, left_s=planned), rate)
    assert left is not None
    assert left >= (100 - ended) / rate
    assert left >= (planned or 0.0)


def test_an_estimate_that_is_used_up_claims_nothing() -> None:
    search = Snapshot(total=10_000, done=2886, workers=2, left_s=0.0)
    assert line(search, rate=57.8).endswith("57.8 trials/s, about 2 min 03 s left")
    assert "left" not in line(search, rate=None)
    assert line(Snapshot(total=8, done=1, workers=1, left_s=90.0), rate=None).endswith("about 1 min 30 s left")


def test_the_state_at_the_end_is_shown_once() -> None:
    whole, cut = Snapshot(total=4, skipped=1, done=3, workers=1, phases={"grokking": 4}), Snapshot(total=4, done=2)
    for states, shown in (
        ([Snapshot(total=4, workers=1), whole], ["t 0/4 done, 0 running, 0 failed", "t 4/4 done, 0 running, 0 failed"]),
        ([whole], ["t 4/4 done, 0 running, 0 failed"]),
        ([cut], ["t 2/4 done, 0 running, 0 failed"]),
    ):
        clock, out = Clock(), io.StringIO()
        lines = Lines(out, every_s=5, clock=clock, wall_clock=lambda: "t")
        for state in states:
            lines.update(state)
            clock.now += 6.0
        lines.close()
        lines.update(states[-1])  # a stopped run is closed before its workers are let go of
        lines.close()
        assert [text.partition(" (")[0] for text in out.getvalue().splitlines()] == shown


def test_a_run_that_was_cut_short_claims_no_time_left_at_its_end() -> None:
    clock, out = Clock(), io.StringIO()
    lines = Lines(out, clock=clock, wall_clock=lambda: "t")
    lines.update(Snapshot(total=4, workers=1))
    lines.update(Snapshot(total=4, done=2, workers=1, left_s=70.0))
    lines.close()
    assert out.getvalue().splitlines()[-1] == "t 2/4 done, 0 running, 0 failed"


def test_a_step_that_blocks_is_mentioned_again_and_again_until_it_ends() -> None:
    said: queue.Queue[str] = queue.Queue()
    with still("starting workers", said.put, every_s=0.01) as say:
        for _ in range(3):
            assert said.get(timeout=30).startswith("still starting workers, for ")
    while not said.empty():
        said.get()
    say("of the block")
    assert said.get(timeout=30) == "of the block"
    with pytest.raises(queue.Empty):
        said.get(timeout=0.05)


def test_a_step_that_speaks_or_ends_soon_is_not_mentioned() -> None:
    said: list[str] = []
    with still("starting workers", said.append, every_s=1000) as say:
        say("the record is away")
    assert said == ["the record is away"]
