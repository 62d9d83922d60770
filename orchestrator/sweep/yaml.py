"""YAML and `--set` options, read into a `Document`.

The YAML is that of version 1.2: only `true` and `false` are booleans, `1e-3` is a number, a date is
text. `${NAME}` and `${NAME:-default}` are replaced from the environment in every scalar value before
its type is decided (in quotes it stays text); `$${` stands for `${`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import UserError
from orchestrator.sweep.document import Document, Keys, Place
from orchestrator.sweep.path import nearest_file, yaml_names

_TAG = "tag:yaml.org,2002:"
_MOST_NODES = 2_000_000
"""Aliases can make a small file expand without bound; beyond this it is refused."""

_DIGITS = list("-+.0123456789")
_CORE: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", _DIGITS),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", _DIGITS),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", _DIGITS),
    ("merge", r"^<<$", ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - emptied: YAML 1.1's own are not wanted


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - as above, so that both agree what needs quotes

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _CORE:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


def dump(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that `read` gives back as it is."""
    return str(yaml.dump(_escaped(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def _escaped(data: Any) -> Any:
    if isinstance(data, str):
        return data.replace("${", "$${")
    if isinstance(data, Mapping):
        return {key: _escaped(value) for key, value in data.items()}
    return [_escaped(value) for value in data] if isinstance(data, list | tuple) else data


def read(path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Document:
    """The file with the overrides laid over it, and the mistakes found on the way.

    Raises:
        UserError: there is nothing to go on with: no such file, not UTF-8, not YAML, not a mapping.
    """
    environ = environ or {}
    document = Document(source=str(path))

    def place(line: int, column: int) -> Place:
        return Place(0, line, column, f"{path}:{line}:{column}")

    builder = _Builder(document, environ, place)
    builder.root(_text(path))
    for position, override in enumerate(overrides, start=1):
        _override(document, environ, override, Place(position, 0, 0, f"--set {override}"))
    return document


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        near, folder = nearest_file(path), path.parent
        step = "name a sweep file" if folder.is_dir() else f"there is no folder {folder} either: name a sweep file"
        raise UserError(
            "there is no such file",
            place=str(path),
            choices=yaml_names(folder),
            next_step=f"did you mean '{near}'?" if near else step,
        ) from None
    except IsADirectoryError:
        raise UserError(
            "is a folder, not a sweep file", place=str(path), choices=yaml_names(path), next_step="name a file in it"
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", place=str(path)) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        line, column = _line_column(before, len(before))
        raise UserError(
            f"not UTF-8 text: byte 0x{raw[error.start]:02x}",
            place=f"{path}:{line}:{column}",
            next_step="save the file in the encoding UTF-8",
        ) from None


def _line_column(text: str, position: int) -> tuple[int, int]:
    return text.count("\n", 0, position) + 1, position - (text.rfind("\n", 0, position) + 1) + 1


_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.DOTALL)
_FLOW = "{}[],"


class _Shield:
    """Hides the `{`, `}` and commas of `${...}` from YAML, to which they mean something inside `[...]`.

    Characters are replaced one for one, so that places stay what they are.
    """

    def __init__(self, text: str) -> None:
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        hidden = [next(free) for _ in _FLOW]
        hide = str.maketrans(dict(zip(_FLOW, hidden, strict=True)))
        self._show = str.maketrans(dict(zip(hidden, _FLOW, strict=True)))
        self.text = re.sub(r"\$\{[^{}\n]*\}", lambda match: match[0].translate(hide), text)

    def show(self, text: str) -> str:
        return text.translate(self._show)


class _Builder:
    """Turns YAML text into plain data and places, noting mistakes in a document."""

    def __init__(self, document: Document, environ: Mapping[str, str], place: Callable[[int, int], Place]) -> None:
        self._document, self._environ, self._place = document, environ, place
        self._shield = _Shield("")
        self._loader = _Loader("")
        self._nodes = 0

    def root(self, text: str) -> None:
        """The whole file.

        Raises:
            UserError: it does not parse, is empty or is not a mapping.
        """
        node = self._compose(text)
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
            raise UserError(
                "the file is empty", place=self._place(1, 1).text, next_step="begin with 'job:' and 'axes:'"
            )
        if not isinstance(node, yaml.MappingNode):
            raise UserError("a sweep file is a mapping of keys to values", place=self._at(node).text)
        self._document.data = self._built(node, (), self._at(node))

    def value(self, text: str, keys: Keys) -> Any:
        """A value that stands alone, for the node `keys`.

        Raises:
            UserError: it does not parse.
        """
        node = self._compose(text)
        place = self._place(1, 1)
        if node is None:
            self._document.places[keys] = (place, place)
            return None
        return self._built(node, keys, place)

    def _built(self, node: yaml.Node, keys: Keys, key_place: Place) -> Any:
        try:
            return self._build(node, keys, key_place, frozenset())
        except RecursionError:
            raise UserError("nested too deeply, or merged into itself", place=self._at(node).text) from None

    def _compose(self, text: str) -> yaml.Node | None:
        self._shield = _Shield(text)
        try:
            loader = _Loader(self._shield.text)
            try:
                return loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.reader.ReaderError as error:
            place = self._place(*_line_column(text, error.position))
            code = error.character if isinstance(error.character, int) else ord(error.character)
            rule = f"not YAML: character U+{code:04X} is not allowed"
            raise UserError(rule, place=place.text, next_step="remove it") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark.line + 1, mark.column + 1) if mark else self._place(1, 1)
            problem = self._shield.show(error.problem or "it does not parse")
            context = f" ({self._shield.show(error.context)})" if error.context else ""
            raise UserError(f"not YAML: {problem}{context}", place=place.text, next_step=_advice(problem)) from None
        except RecursionError:
            raise UserError("nested too deeply", place=self._place(1, 1).text) from None

    def _at(self, node: yaml.Node) -> Place:
        return self._place(node.start_mark.line + 1, node.start_mark.column + 1)

    def _build(self, node: yaml.Node, keys: Keys, key_place: Place, above: frozenset[int]) -> Any:
        self._nodes += 1
        place = self._at(node)
        if self._nodes > _MOST_NODES:
            raise UserError(f"its aliases stand for more than {_MOST_NODES:,} values", place=place.text)
        self._document.places[keys] = (key_place, place)
        if id(node) in above:
            return self._broken(keys, "an alias inside the very thing that it stands for")
        above = above | {id(node)}
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._build(n, (*keys, i), self._at(n), above) for i, n in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            data: dict[str, Any] = {}
            for name, at, child in self._pairs(node, keys):
                data[name] = self._build(child, (*keys, name), at, above)
            return data
        return self._bad_tag(node, keys)

    def _pairs(self, node: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, Place, yaml.Node]]:
        """A mapping's own entries, then those it merges in (`<<`), each name once."""
        own: dict[str, Place] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            at = self._at(key_node)
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif not isinstance(key_node, yaml.ScalarNode):
                self._document.add(keys, "a key must be a name", at=at)
            elif (name := self._shield.show(key_node.value)) in own:
                what = "axis" if keys == ("axes",) else "key"
                rule = f"duplicate {what} '{name}'; it stands at {own[name].text} already"
                self._document.add((*keys, name), rule, at=at, next_step="keep one of the two")
            else:
                own[name] = at
                yield name, at, value_node
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                self._document.add(keys, "'<<' merges a mapping, or a list of mappings", at=self._at(source))
                continue
            if source is node:
                self._document.add(keys, "'<<' merges a mapping into itself", at=self._at(source))
                continue
            for name, at, value_node in self._pairs(source, keys):
                if name not in own:
                    own[name] = at
                    yield name, at, value_node

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        plain = node.style is None and node.tag == self._implicit(node.value)
        text = self._substituted(self._shield.show(node.value), keys)
        if text is None:
            return None
        tag = self._implicit(text) if plain else node.tag
        if tag in (_TAG + "str", _TAG + "merge"):
            return text
        if tag == _TAG + "null":
            return None
        try:
            return _CONVERT[tag](text)
        except KeyError:
            return self._bad_tag(node, keys)
        except ValueError:
            return self._broken(keys, f"does not read as {tag.removeprefix(_TAG)}", value=text)

    def _implicit(self, text: str) -> str:
        return str(self._loader.resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]

    def _bad_tag(self, node: yaml.Node, keys: Keys) -> None:
        return self._broken(
            keys, f"the tag {node.tag!r} has no meaning in a sweep file", next_step="write plain values, without '!'"
        )

    def _broken(self, keys: Keys, rule: str, **known: Any) -> None:
        self._document.add(keys, rule, **known)
        self._document.broken.add(keys)

    def _substituted(self, text: str, keys: Keys) -> str | None:
        """The text with references to the environment replaced; None where one cannot be."""
        if "${" not in text:
            return text
        wrong: list[tuple[str, str]] = []

        def value(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            inside = _INSIDE.fullmatch(match[1] or "")
            if not inside:
                wrong.append(
                    (
                        "a reference to the environment is ${NAME} or ${NAME:-default}",
                        "write $${ for the characters ${",
                    )
                )
                return ""
            name, has_default, default = inside.groups()
            found = self._environ.get(name)
            if has_default:
                return found or default
            if found is None:
                next_step = f"export {name}=..., or give a default: ${{{name}:-...}}"
                wrong.append((f"the environment variable {name} is not set", next_step))
            return found or ""

        replaced = _REFERENCE.sub(value, text)
        if wrong:
            rule, next_step = wrong[0]
            self._broken(keys, rule, value=text, next_step=next_step)
            return None
        return replaced


def _integer(text: str) -> int:
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)


_CONVERT: Mapping[str, Callable[[str], Any]] = {
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": _integer,
    _TAG + "float": lambda text: _float(text.lower()),
}


def _advice(problem: str) -> str:
    if "'\\t'" in problem:
        return "indent with spaces; YAML allows no tabs there"
    if "mapping values are not allowed" in problem:
        return "one 'key: value' a line, equally indented; quote text that holds ': '"
    if "alias" in problem or "anchor" in problem or "directive" in problem or "cannot start" in problem:
        return "quote the value if it is text"
    return "check the indentation, quotes and brackets up to this place"


def _override(document: Document, environ: Mapping[str, str], override: str, place: Place) -> None:
    """Lay one `path.to.key=value` over the document; its mistakes are noted there."""
    path, equals, text = override.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not equals or not all(names):
        document.add(
            (), "an override is path=value", at=place, next_step="for example --set axes.weight_decay.points=48"
        )
        return
    keys: Keys = ()
    node: Any = document.data
    for name in names:
        parent = node
        if isinstance(parent, list):
            if not (name.isdecimal() and int(name) < len(parent)):
                shown = _dotted(keys)
                document.add(
                    keys,
                    f"'{shown}' is a list of {len(parent)} values; it has no '{name}'",
                    at=place,
                    choices=range(len(parent)),
                    next_step=f"replace the whole: --set '{shown}=[...]'",
                )
                return
            keys, node = (*keys, int(name)), parent[int(name)]
        elif isinstance(parent, dict):
            keys, node = (*keys, name), parent.get(name)
        else:
            shown = _dotted(keys)
            document.add(
                keys,
                f"'{shown}' holds a value, so nothing can be set inside it",
                at=place,
                value=parent,
                next_step=f"replace the whole: --set {shown}=...",
            )
            return
        if node is None and len(keys) < len(names):  # absent, or written without a value
            document.forget(keys)
            document.places[keys] = (place, place)
            node = parent[keys[-1]] = {}
    document.forget(keys)
    document.places[keys] = (place, place)
    parent[keys[-1]] = None
    try:
        parent[keys[-1]] = _Builder(document, environ, lambda _line, _column: place).value(text, keys)
    except UserError as error:
        next_step = "quote the value, for the shell and for YAML"
        document.add(keys, error.mistakes[0].rule, at=place, value=text, next_step=next_step)
        document.broken.add(keys)


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))
