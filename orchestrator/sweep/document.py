"""Plain data in which every key and value still knows where it was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.errors import NOTHING, Mistake, UserError

Keys = tuple[str | int, ...]
"""The way from the root to a node: mapping keys and list positions (from 0)."""


class Place(NamedTuple):
    """Where something was written. Places sort as a reader meets them: the file, then options."""

    source: int
    """0 for the file, then 1, 2, ... for the options in their order."""
    line: int
    column: int
    text: str
    """As a message shows it."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    place: Place
    keys: Keys
    mistake: Mistake


@dataclass(kw_only=True)
class Document:
    """Data, the places of its nodes, and the mistakes found in it so far."""

    source: str
    """The file as the user named it."""
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, tuple[Place, Place]] = field(default_factory=dict)
    """Node -> (place of its key or list entry, place of its value)."""
    broken: set[Keys] = field(default_factory=set)
    """Nodes whose value could not be read: whatever else is wrong there follows from that."""
    found: list[_Found] = field(default_factory=list)

    def place(self, keys: Keys, *, key: bool = False) -> Place:
        """The place of a node's value (or of its key); of its nearest written ancestor where it has none."""
        while keys not in self.places:
            if not keys:
                return Place(0, 1, 1, f"{self.source}:1:1")
            keys = keys[:-1]
        return self.places[keys][0 if key else 1]

    def get(self, keys: Keys) -> Any:
        """The value of a node, or NOTHING where there is none."""
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
    ) -> None:
        """Note a mistake at a node's value, at its key, or `at` a place; none where that could not be read."""
        if any(keys[:n] in self.broken for n in range(len(keys) + (not key))):
            return
        place = at or self.place(keys, key=key)
        mistake = Mistake(rule=rule, place=place.text, value=value, choices=choices, next_step=next_step)
        self.found.append(_Found(place=place, keys=keys, mistake=mistake))

    def wrong_under(self, keys: Keys) -> bool:
        """Whether a mistake was found at this node or below it."""
        return any(found.keys[: len(keys)] == keys for found in self.found)

    def forget(self, keys: Keys) -> None:
        """Drop a node and all below it, with the mistakes found there: it is about to be replaced."""
        n = len(keys)
        self.places = {node: pair for node, pair in self.places.items() if node[:n] != keys}
        self.broken = {node for node in self.broken if node[:n] != keys}
        self.found = [found for found in self.found if found.keys[:n] != keys]

    def forget_mistakes(self, keys: Keys) -> None:
        """Drop what an option did wrong inside the node that it made itself: one mistake about the node says it."""
        made_by = self.place(keys, key=True).source
        if made_by:
            n = len(keys)
            self.found = [f for f in self.found if f.keys[:n] != keys or f.place.source != made_by]

    def stop_if_wrong(self) -> None:
        """Raise all mistakes found so far, in the order of their places.

        Raises:
            UserError: there is one.
        """
        if self.found:
            ordered = sorted(self.found, key=lambda found: found.place[:3])
            distinct = {found.mistake.text: found.mistake for found in ordered}
            raise UserError.of(list(distinct.values()))
