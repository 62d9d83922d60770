"""`extends: other.yaml`: a sweep file that is another one with changes.

The other file's keys hold where this one does not set them, each with its own place in messages. Mappings are joined
key by key, all other values replaced. An axis with a scale or a list of values replaces that of the other file; other
keys of an axis, such as `points`, change it. A parameter has one place: under `fixed` it is no axis of the other file
any more, and the other way round. The name and the output folder are never those of the other file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import did_you_mean
from orchestrator.sweep.document import Document, Keys
from orchestrator.sweep.file import SECTIONS
from orchestrator.sweep.yaml import apply, parse, yaml_names

KEY = "extends"
_OWN = ("name", "output", KEY)
"""Keys that are not inherited."""
_JOINED = (
    ("axes",),
    ("fixed",),
    ("phases",),
    ("search",),
    ("search", "until"),
    ("figure",),
    ("figure", "labels"),
    ("figure", "colours"),
    ("resources",),
    ("tracking",),
)
"""Mappings that are joined; axes are, too, see `_joins`."""


def read(
    path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> tuple[Document, Path | None]:
    """A sweep file with all that it inherits and the overrides, and the file that it extends.

    Raises:
        UserError: nothing can be checked, see `orchestrator.sweep.yaml.parse`; or there is no file to extend.
    """
    environ = environ or {}
    document = parse(path, environ)
    base = _extend(document, environ, (path,))
    if document.wrong_under((KEY,)):  # other mistakes may follow from it
        document.stop_if_wrong()
    apply(document, overrides, environ)
    if document.place((KEY,)).source:
        document.add((KEY,), f"'{KEY}' is written in the file", key=True, next_step=f"add '{KEY}: ...' to {path}")
    return document, base


def _extend(document: Document, environ: Mapping[str, str], chain: tuple[Path, ...]) -> Path | None:
    """Join a document with the one that it extends; that one's file. `chain`: the files from the first one on."""
    written = document.get((KEY,))
    if not isinstance(written, str) or not written:
        return None
    base = chain[-1].parent / written
    if not base.is_file():
        names = yaml_names(base.parent)
        step = did_you_mean(base.name, names, "write its path relative to this file")
        document.add((KEY,), "there is no such file", value=written, choices=names, next_step=step)
        return None
    files = [file.resolve() for file in chain]
    if base.resolve() in files:
        circle = [*chain[files.index(base.resolve()) :], base]
        rule = f"these files extend each other in a circle: {' -> '.join(file.name for file in circle)}"
        document.add((KEY,), rule, value=written, next_step=f"remove '{KEY}:' from one of them")
        return None
    other = parse(base, environ)
    _extend(other, environ, (*chain, base))
    document.noted += [item for item in other.noted if item[1] == (KEY,)]
    own = {section: _names(document, section) for section in ("fixed", "axes")}
    _inherit(document, other, (), own)
    return base


def _names(document: Document, section: str) -> set[str]:
    """The names in a section; of axes, those without a condition, which leave no place for a fixed value."""
    content = document.data.get(section)
    if not isinstance(content, dict):
        return set()
    return {name for name, value in content.items() if section == "fixed" or not _has(value, "when")}


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and any(key in value for key in keys)


def _inherit(document: Document, other: Document, keys: Keys, own: Mapping[str, set[str]]) -> None:
    """Join the mapping at `keys`, in the order of the other file: it decides the order of the axes."""
    mine, theirs = document.get(keys), other.get(keys)
    joined: dict[str, Any] = {}
    for name, value in theirs.items():
        below = (*keys, name)
        if (not keys and name in _OWN) or (keys in (("axes",), ("fixed",)) and name in own[_elsewhere(keys)]):
            continue
        unset = name in mine and mine[name] is None and below not in document.broken
        if name not in mine or (unset and not keys and name in SECTIONS):
            _take(document, other, below)
            joined[name] = value
        else:
            if isinstance(mine[name], dict) and isinstance(value, dict) and _joins(below, mine[name], value):
                _inherit(document, other, below, own)
            joined[name] = mine[name]
    joined |= {name: value for name, value in mine.items() if name not in joined}
    mine.clear()
    mine.update(joined)
    document.noted += [item for item in other.noted if item[1] == keys]


def _elsewhere(keys: Keys) -> str:
    return "fixed" if keys == ("axes",) else "axes"


def _joins(keys: Keys, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a mapping changes that of the other file, rather than replacing it."""
    if len(keys) == 2 and keys[0] == "axes":
        return not _has(mine, "scale", "values")
    if keys == ("search",):
        return bool("kind" not in mine or mine["kind"] == theirs.get("kind"))
    return keys in _JOINED


def _take(document: Document, other: Document, keys: Keys) -> None:
    """Take over the places and mistakes of a node and of all below it."""
    n = len(keys)
    document.forget(keys)
    document.places |= {node: pair for node, pair in other.places.items() if node[:n] == keys}
    document.secret |= {node: text for node, text in other.secret.items() if node[:n] == keys}
    document.broken |= {node for node in other.broken if node[:n] == keys}
    document.noted += [item for item in other.noted if item[1][:n] == keys]
