"""Laws of what a run says while it runs."""

import io

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.progress import Lines, Live, Rate, Snapshot, amount_of_bytes, duration, for_stream, line


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_done_running_failed_rate_and_time_left() -> None:
    snapshot = Snapshot(total=512, skipped=20, done=100, running=16, failed=2, workers=2)
    assert line(snapshot, rate=8.4) == "120/512 done, 16 running, 2 failed, 8.4 trials/s, about 46 s left"


def test_without_a_rate_no_time_left_is_claimed() -> None:
    assert "left" not in line(Snapshot(total=5), rate=None)
    assert "left" not in line(Snapshot(total=5, done=5, workers=1), rate=1.0)


def test_durations_and_amounts_read_well() -> None:
    assert [duration(s) for s in (0.31, 47.2, 59.7, 200, 3599.6, 7500)] == [
        "0.3 s", "47 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
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
    assert out.getvalue().splitlines()[-1] == (
        "12:00:00 20/100 done, 0 running, 0 failed, 2 trials/s, about 40 s left"
    )


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
