"""Any text can be printed, recorded and read back."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.function import described
from orchestrator.dispatch.base import Cause, PackFailed
from orchestrator.printable import LONGEST_LINE, last_line, printable
from orchestrator.records import Status, TrialResult


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file 'caf\udce9'", r"no file 'caf\udce9'"),
        ("a\0b", r"a\x00b"),
        ("\u202a\u202e evil \u2066\u2069", r"\u202a\u202e evil \u2066\u2069"),
        ("\x1b[31mred\x9b", r"\x1b[31mred\x9b"),
        ("10%\r20%\r\ndone\u2028", "10%\n20%\ndone\\u2028"),
        ("Traceback:\n\té λ 🙂", "Traceback:\n\té λ 🙂"),
    ],
)
def test_unsafe_characters_are_written_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=300), st.integers(100, 200))
def test_the_result_is_bounded_encodable_and_stays_as_it_is(text: str, longest: int) -> None:
    shown = printable(text, longest=longest)
    assert len(shown) <= longest
    assert shown.encode().decode() == shown
    assert printable(shown, longest=longest) == shown
    with sqlite3.connect(":memory:") as base:
        assert base.execute("SELECT ?", (shown,)).fetchone() == (shown,)


def test_a_long_message_keeps_the_place_and_the_name_of_the_error() -> None:
    text = "Traceback:\n  File 'train.py', line 7\n" + "".join(f"  frame {k}\n" for k in range(9000))
    shown = printable(text + "ValueError: " + "x" * 10_000_000)
    assert shown.startswith("Traceback:\n  File 'train.py', line 7\n")
    last = last_line(shown)
    assert last.startswith("ValueError: xxx")
    assert "characters ...] xxx" in last
    assert len(last) <= LONGEST_LINE


def raised(error: BaseException) -> str:
    try:
        raise error
    except BaseException as caught:
        return described(caught)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("y\n" * 5_000_000), "ValueError: y"),
        (ValueError("went wrong\n(Background on this error at: https://example.org)"), "ValueError: went wrong"),
        (RuntimeError("outer:\n  indented\ntext"), "RuntimeError: outer:"),
        (ExceptionGroup("several", [ValueError("one")]), "ExceptionGroup: several (1 sub-exception)"),
    ],
)
def test_the_summary_of_an_error_is_its_name_and_the_first_line_of_its_message(error: Exception, name: str) -> None:
    assert last_line(printable(raised(error))) == name
    outer = KeyError("outer")
    outer.__cause__ = error
    assert last_line(printable(raised(outer))) == "KeyError: 'outer'"
    error.__cause__ = KeyError("inner")
    assert last_line(printable(raised(error))) == name


def test_results_and_failures_hold_printable_text() -> None:
    """The record and the terminal get it as it is."""
    raw = "FileNotFoundError: 'caf\udce9\0'"
    assert TrialResult("id", Status.FAILED, error=raw).error == r"FileNotFoundError: 'caf\udce9\x00'"
    failed = PackFailed(pack_id="p", cause=Cause.USER_ERROR, error=raw)
    assert failed.error == r"FileNotFoundError: 'caf\udce9\x00'"
