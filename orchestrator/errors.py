"""A user's mistake: where it is, the rule it breaks, the value, the valid choices, the next step.

The command line prints `UserError.text` and exits with code 2; it never shows a traceback for one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final


class _Nothing:
    """Stands for "no value to show", since None is a value that YAML can hold."""

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()

_LONGEST_VALUE = 200
"""Characters of a value that a message shows; a list of 10,000 numbers helps nobody."""


def show(value: object) -> str:
    """A value as the user would write it in YAML: `true`, `null`, quoted text; long ones are cut."""
    yaml = {"True": "true", "False": "false", "None": "null"}
    text = yaml.get(repr(value), repr(value))
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` most likely meant, or None where none is like it."""
    by_folded = {v.casefold(): v for v in valid}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake in something that a user wrote."""

    rule: str
    """What must hold, or what does not."""
    place: str = ""
    """`file:line:column`, `file`, or the command-line option; empty where there is none."""
    value: object = NOTHING
    choices: Sequence[object] = ()
    """The valid choices, all of them."""
    next_step: str = ""
    """What to do now."""

    @property
    def text(self) -> str:
        """`place: rule`, then indented lines for what is known of value, choices and next step."""
        lines = [f"{self.place}: {self.rule}" if self.place else self.rule]
        if self.value is not NOTHING:
            lines.append(f"  value: {show(self.value)}")
        if self.choices:
            lines.append(f"  valid: {', '.join(map(str, self.choices))}")
        if self.next_step:
            lines.append(f"  next:  {self.next_step}")
        return "\n".join(lines)


class UserError(Exception):
    """One mistake, or several that are independent of each other (`UserError.of`)."""

    def __init__(
        self,
        rule: str,
        *,
        place: str = "",
        value: object = NOTHING,
        choices: Sequence[object] = (),
        next_step: str = "",
    ) -> None:
        mistake = Mistake(rule=rule, place=place, value=value, choices=choices, next_step=next_step)
        super().__init__(mistake.text)
        self.mistakes: tuple[Mistake, ...] = (mistake,)

    @classmethod
    def of(cls, mistakes: Sequence[Mistake]) -> UserError:
        """All of these mistakes as one error, in the given order."""
        error = cls("")
        error.mistakes = tuple(mistakes)
        error.args = (error.text,)
        return error

    @property
    def text(self) -> str:
        """What to print: one block of lines per mistake."""
        return "\n".join(mistake.text for mistake in self.mistakes)
