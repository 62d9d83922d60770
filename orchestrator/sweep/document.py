"""Plain data, with the place where each key and value was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.errors import NOTHING, Mistake, UserError

Keys = tuple[str | int, ...]
"""The way from the root to a node: mapping keys and list positions (from 0)."""


class Place(NamedTuple):
    """Where something was written. Places sort in reading order: the file, then the options."""

    source: int
    """0 for the file, 1, 2, ... for the options."""
    line: int
    column: int
    text: str
    """As a message shows it."""


@dataclass(kw_only=True)
class Document:
    """Data, the places of its nodes, and the mistakes noted so far."""

    source: str
    """The file as the user named it."""
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, tuple[Place, Place]] = field(default_factory=dict)
    """Node -> (place of its key or list entry, place of its value)."""
    secret: dict[Keys, str] = field(default_factory=dict)
    """Node -> its text as written, where a reference to the environment stands for a secret."""
    broken: set[Keys] = field(default_factory=set)
    """Nodes whose value could not be read: other mistakes there follow from that and are not noted."""
    noted: list[tuple[Place, Keys, Mistake]] = field(default_factory=list)
    noted_of_new: list[tuple[Place, Keys, Mistake]] = field(default_factory=list)
    """Mistakes that forbid new trials only: recorded ones stay readable."""

    def place(self, keys: Keys, *, key: bool = False) -> Place:
        """The place of a node's value, or of its key; where it has none, of its nearest ancestor that has one."""
        while keys not in self.places:
            if not keys:
                return Place(0, 1, 1, f"{self.source}:1:1")
            keys = keys[:-1]
        return self.places[keys][0 if key else 1]

    def get(self, keys: Keys) -> Any:
        """The value of a node; NOTHING where there is none."""
        value: Any = self.data
        for key in keys:
            if isinstance(value, dict):
                value = value.get(key, NOTHING)
            elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
                value = value[key]
            else:
                return NOTHING
        return value

    def add(
        self,
        keys: Keys,
        rule: str,
        *,
        key: bool = False,
        at: Place | None = None,
        value: object = NOTHING,
        choices: Sequence[object] = (),
        next_step: str = "",
        new_trials: bool = False,
    ) -> None:
        """Note a mistake at a node's value, at its key, or `at` a place, unless the node could not be read.

        `new_trials`: it is a mistake where trials are to run. An earlier version did not know the rule, and what it has
        recorded is read.
        """
        if any(keys[:n] in self.broken for n in range(len(keys) + (not key))):
            return
        place = at or self.place(keys, key=key)
        mistake = Mistake(rule=rule, place=place.text, value=value, choices=choices, next_step=next_step)
        (self.noted_of_new if new_trials else self.noted).append((place, keys, mistake))

    def wrong_under(self, keys: Keys) -> bool:
        """Whether a mistake was noted at this node or below it."""
        return any(noted[: len(keys)] == keys for _, noted, _ in self.noted)

    def forget(self, keys: Keys) -> None:
        """Drop a node that is about to be replaced, all below it, and the mistakes noted there."""
        n = len(keys)
        self.places = {node: pair for node, pair in self.places.items() if node[:n] != keys}
        self.secret = {node: text for node, text in self.secret.items() if node[:n] != keys}
        self.broken = {node for node in self.broken if node[:n] != keys}
        self.noted = [item for item in self.noted if item[1][:n] != keys]

    def forget_mistakes(self, keys: Keys) -> None:
        """Drop the mistakes that an option made inside a node that it created: a mistake of the node replaces them."""
        source = self.place(keys, key=True).source
        if source:
            self.noted = [item for item in self.noted if item[1][: len(keys)] != keys or item[0].source != source]

    def stop_if_wrong(self) -> None:
        """Raise the mistakes noted so far, in the order of their places.

        Raises:
            UserError: there is one that forbids to read the sweep.
        """
        if self.noted:
            raise UserError.of(_ordered([*self.noted, *self.noted_of_new]))

    def of_new_trials(self) -> tuple[Mistake, ...]:
        """The mistakes that forbid new trials only, in the order of their places."""
        return tuple(_ordered(self.noted_of_new))


def _ordered(noted: Sequence[tuple[Place, Keys, Mistake]]) -> list[Mistake]:
    ordered = sorted(noted, key=lambda item: item[0][:3])
    return list({mistake.text: mistake for _, _, mistake in ordered}.values())
