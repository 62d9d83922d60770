"""What the command line prints without a traceback: a user's mistake, and an outage.

A mistake has its place, the rule it breaks, the value, the valid choices and the next step (exit code 2). An outage is
the infrastructure's: the same command can be run again (exit code 75).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.secrets import hide

NOTHING: Final = object()
"""No value: None is a value that YAML can hold."""
_LONGEST_VALUE = 200
"""Characters of a value that a message shows."""


def show(value: object) -> str:
    """A value as written in YAML (`true`, `null`, quoted text), cut if it is long."""
    yaml = {"True": "true", "False": "false", "None": "null"}
    text = hide(yaml.get(repr(value), repr(value)))  # before it is cut: half a secret would not be recognised
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that is most like `name`; None where none is like it."""
    by_folded = {v.casefold(): v for v in valid}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, valid: Iterable[str], otherwise: str = "") -> str:
    """A next step for a name that is not valid: the nearest valid one, or `otherwise` where none is like it."""
    near = nearest(name, valid)
    return f"did you mean '{near}'?" if near else otherwise


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake in something that a user wrote."""

    rule: str
    """What must hold, or what is wrong."""
    place: str = ""
    """`file:line:column`, `file`, or the command-line option."""
    value: object = NOTHING
    choices: Sequence[object] = ()
    """The valid choices, all of them."""
    next_step: str = ""

    @property
    def text(self) -> str:
        """`place: rule`, then a line each for value, choices and next step where they are given."""
        lines = [f"{self.place}: {self.rule}" if self.place else self.rule]
        if self.value is not NOTHING:
            lines.append(f"  value: {show(self.value)}")
        if self.choices:
            lines.append(f"  valid: {', '.join(map(str, self.choices))}")
        if self.next_step:
            lines.append(f"  next:  {self.next_step}")
        return hide("\n".join(lines))


class UserError(Exception):
    """One mistake, or several independent ones (`UserError.of`)."""

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
        """One error with all of these mistakes, in the given order."""
        error = cls("")
        error.mistakes = tuple(mistakes)
        error.args = (error.text,)
        return error

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [self.text]

    @property
    def text(self) -> str:
        """What to print: one block of lines per mistake."""
        return "\n".join(mistake.text for mistake in self.mistakes)


class Outage(Exception):
    """The infrastructure (a database, a cluster, a disk) stayed away: the same command can be run again.

    Args:
        what: what happened, in one line.
        next_step: what the user can do.
    """

    def __init__(self, what: str, *, next_step: str = "") -> None:
        super().__init__(what)
        self.what, self.next_step = what, next_step

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [self.text]

    @property
    def text(self) -> str:
        """What to print: one line, and the next step where there is one."""
        return hide(f"{self.what}\n  next:  {self.next_step}" if self.next_step else self.what)
