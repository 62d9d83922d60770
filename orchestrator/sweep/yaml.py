"""YAML and `--set` options, read into a `Document`.

YAML 1.2: only `true` and `false` are booleans, `1e-3` is a number, a date is text. `${NAME}` and
`${NAME:-default}` in a scalar are replaced from the environment before its type is decided (quoted scalars stay
text); `$${` stands for `${`.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import UserError, nearest
from orchestrator.secrets import hide, is_secret_name, secrets_in
from orchestrator.sweep.document import Document, Keys, Place

_TAG = "tag:yaml.org,2002:"
_MOST_NODES = 2_000_000
"""Limit on the expansion of aliases: a small file can stand for an unbounded number of values."""
_MOST_BYTES = 10_000_000
_NOT_RECORDED = re.compile("[\x00\ud800-\udfff]")
"""Characters that a database does not hold; a surrogate comes from an escape, or from a variable that is not UTF-8."""

_DIGITS = list("-+.0123456789")
_CORE: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_TAG + "int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), _DIGITS),
    (_TAG + "float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), _DIGITS),
    (_TAG + "float", re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), _DIGITS),
    (_TAG + "merge", re.compile(r"^<<$"), ["<"]),
)
"""Tag, the plain scalars that have it, and their first characters: the core schema of YAML 1.2, and `<<`."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - without the resolvers of YAML 1.1


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - quotes what `_Loader` would not read as text

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _resolver in _CORE:
    _Loader.add_implicit_resolver(*_resolver)
    _Dumper.add_implicit_resolver(*_resolver)


def _implicit_tag(text: str) -> str:
    return next((tag for tag, pattern, _ in _CORE if pattern.match(text)), _TAG + "str")


def dump(data: Mapping[str, Any]) -> str:
    """Plain data as YAML; `read` returns the same data."""
    return str(yaml.dump(_escaped(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


class Reference(str):
    """A text whose references to the environment `dump` keeps as references."""

    __slots__ = ()


def _escaped(data: Any) -> Any:
    if isinstance(data, Reference):
        return str(data)
    if isinstance(data, str):
        return data.replace("${", "$${")
    if isinstance(data, Mapping):
        return {key: _escaped(value) for key, value in data.items()}
    return [_escaped(value) for value in data] if isinstance(data, list | tuple) else data


def without_defaults(text: str) -> str:
    """The text with `${NAME}` for `${NAME:-default}`, where the variable is a secret and so is its default."""

    def plain(match: re.Match[str]) -> str:
        inside = _INSIDE.fullmatch(match[1] or "")
        return f"${{{inside[1]}}}" if inside and is_secret_name(inside[1]) else match[0]

    return _REFERENCE.sub(plain, text)


def read(path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Document:
    """Read one file and apply the overrides, see `parse` and `apply`."""
    document = parse(path, environ or {})
    apply(document, overrides, environ or {})
    return document


def parse(path: Path, environ: Mapping[str, str]) -> Document:
    """Read one file; mistakes that leave something to check are noted in the document.

    Raises:
        UserError: nothing can be checked: no such file, not UTF-8, not YAML, not a mapping.
    """
    document = Document(source=str(path))

    def place(line: int, column: int) -> Place:
        return Place(0, line, column, f"{path}:{line}:{column}")

    builder = _Builder(document, environ, place, _text(path))
    node = builder.node
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        raise UserError("the file is empty", place=place(1, 1).text, next_step="begin with 'job:' and 'axes:'")
    if not isinstance(node, yaml.MappingNode):
        step = "begin with 'job:' and 'axes:'"
        raise UserError("a sweep file is a mapping of keys to values", place=builder.at(node).text, next_step=step)
    document.data = builder.build(node, ())
    return document


def apply(document: Document, overrides: Sequence[str], environ: Mapping[str, str]) -> None:
    """Apply overrides `a.b=value`, as of `--set`; their mistakes are noted in the document."""
    for position, override in enumerate(overrides, start=1):
        _override(document, environ, override, Place(position, 0, 0, f"--set {hide(override)}"))


def _text(path: Path) -> str:
    try:
        raw = _content(path)
    except FileNotFoundError:
        near, folder = _nearest_file(path), path.parent
        step = "name a sweep file" if folder.is_dir() else f"there is no folder {folder} either: name a sweep file"
        step = f"did you mean '{near}'?" if near else step
        raise UserError("there is no such file", place=str(path), choices=yaml_names(folder), next_step=step) from None
    except IsADirectoryError:
        rule, step = "is a folder, not a sweep file", "name a file in it"
        raise UserError(rule, place=str(path), choices=yaml_names(path), next_step=step) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", place=str(path)) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        line, column = _line_column(before, len(before))
        rule, place = f"not UTF-8 text: byte 0x{raw[error.start]:02x}", f"{path}:{line}:{column}"
        raise UserError(rule, place=place, next_step="save the file in the encoding UTF-8") from None


def _content(path: Path) -> bytes:
    """The bytes of a file, or of a pipe that the shell gave: `/dev/stdin`, `<(...)`."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError
    if not stat.S_ISREG(mode) and not (stat.S_ISFIFO(mode) and path.is_relative_to("/dev")):
        raise UserError("is not a regular file", place=str(path), next_step="name a sweep file (YAML)")
    with path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        rule, step = f"is larger than {_MOST_BYTES // 10**6} MB, the most of a sweep file", "name a sweep file (YAML)"
        raise UserError(rule, place=str(path), next_step=step)
    return raw


def _nearest_file(path: Path) -> Path | None:
    """The YAML file whose path is most like one that does not exist: first its folders, then its name.

    A file of the same name one folder below counts as like it. None where there is no such file.
    """
    folder = Path(path.anchor)
    for part in path.parent.parts[1 if path.anchor else 0 :]:
        if not (folder / part).is_dir():
            near = nearest(part, _listed(folder, Path.is_dir))
            if near is None:
                return None
            part = near
        folder /= part
    for place in (folder, *(folder / name for name in _listed(folder, Path.is_dir))):
        if path.name in yaml_names(place):
            return place / path.name
    stems = {Path(name).stem: name for name in yaml_names(folder)}  # without the suffix, which all names share
    near = nearest(path.stem, stems)
    return folder / stems[near] if near else None


def yaml_names(folder: Path) -> list[str]:
    """The YAML files of a folder, hidden ones left out."""
    return [name for name in _listed(folder, Path.is_file) if name.endswith((".yaml", ".yml"))]


def _listed(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """Names in a folder, hidden ones left out; none where it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and wanted(path))
    except OSError:
        return []


def _line_column(text: str, position: int) -> tuple[int, int]:
    return text.count("\n", 0, position) + 1, position - (text.rfind("\n", 0, position) + 1) + 1


SECRET_PLACES: tuple[Keys, ...] = (("tracking", "uri"), ("search", "storage"))
"""Values that may hold a password: it is neither printed nor recorded."""


def secret_here(name: str, keys: Keys) -> tuple[str, str]:
    """Rule and next step for a value that is recorded, and that holds the secret of a variable."""
    places = " and ".join(".".join(map(str, place)) for place in SECRET_PLACES)
    step = f"read it in the job, as os.environ[{name!r}]"
    if keys == ("tracking", "artifacts"):
        step = "give the artifact store its credentials by its own variables, such as AWS_ACCESS_KEY_ID"
    elif keys[0] not in ("fixed", "axes"):
        step = "write a value that may be recorded"
    return f"the variable {name} is a secret, and this value is recorded", f"{step}; only {places} may hold a secret"


_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.DOTALL)
_FLOW = "{}[],"


class _Builder:
    """Turns YAML text into plain data and places, and notes mistakes in a document.

    The characters `{}[],` inside `${...}` mean something to YAML within `[...]`: they are hidden from it, replaced
    one for one by unused characters so that places do not move.

    Raises:
        UserError: the text does not parse.
    """

    def __init__(
        self, document: Document, environ: Mapping[str, str], place: Callable[[int, int], Place], text: str
    ) -> None:
        self._document, self._environ, self._place, self._nodes = document, environ, place, 0
        unused = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        hidden = [next(unused) for _ in _FLOW]
        hide = str.maketrans(dict(zip(_FLOW, hidden, strict=True)))
        self._shown = str.maketrans(dict(zip(hidden, _FLOW, strict=True)))
        self.node = self._compose(re.sub(r"\$\{[^{}\n]*\}", lambda match: match[0].translate(hide), text))
        """The root; None where the text holds no value."""

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            loader = _Loader(text)
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
            problem = error.problem or "it does not parse"
            rule = f"not YAML: {problem}" + (f" ({error.context})" if error.context else "")
            rule = rule.translate(self._shown)
            raise UserError(rule, place=place.text, next_step=_advice(problem)) from None
        except RecursionError:
            raise UserError("nested too deeply", place=self._place(1, 1).text) from None

    def at(self, node: yaml.Node) -> Place:
        return self._place(node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: yaml.Node, keys: Keys) -> Any:
        """The data of a node that stands at `keys` in the document."""
        try:
            return self._build(node, keys, self.at(node), frozenset())
        except RecursionError:
            raise UserError("nested too deeply, or merged into itself", place=self.at(node).text) from None

    def _build(self, node: yaml.Node, keys: Keys, key_place: Place, above: frozenset[int]) -> Any:
        self._nodes += 1
        place = self.at(node)
        if self._nodes > _MOST_NODES:
            raise UserError(f"its aliases expand to more than {_MOST_NODES:,} values", place=place.text)
        self._document.places[keys] = (key_place, place)
        if id(node) in above:
            return self._broken(keys, "an alias inside the value that it refers to")
        above = above | {id(node)}
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._build(n, (*keys, i), self.at(n), above) for i, n in enumerate(node.value)]
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
            at = self.at(key_node)
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif not isinstance(key_node, yaml.ScalarNode):
                self._document.add(keys, "a key must be a name", at=at)
            elif (name := key_node.value.translate(self._shown)) in own:
                rule = f"duplicate {'axis' if keys == ('axes',) else 'key'} '{name}'; the first is at {own[name].text}"
                self._document.add((*keys, name), rule, at=at, next_step="keep one of the two")
            else:
                own[name] = at
                yield name, at, value_node
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                self._document.add(keys, "'<<' merges a mapping, or a list of mappings", at=self.at(source))
            elif source is node:
                self._document.add(keys, "'<<' merges a mapping into itself", at=self.at(source))
            else:
                for name, at, value_node in self._pairs(source, keys):
                    if name not in own:
                        own[name] = at
                        yield name, at, value_node

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        plain = node.style is None and node.tag == _implicit_tag(node.value)
        text = self._substituted(node.value.translate(self._shown), keys)
        if text is None:
            return None
        if bad := _NOT_RECORDED.search(text):
            rule = f"the character U+{ord(bad[0]):04X} cannot be recorded"
            return self._broken(keys, rule, value=text, next_step="remove it")
        tag = _implicit_tag(text) if plain else node.tag
        if tag in (_TAG + "str", _TAG + "merge"):
            return text
        if tag == _TAG + "null":
            return None
        try:
            return _CONVERT[tag](text)
        except KeyError:
            return self._bad_tag(node, keys)
        except OverflowError:
            return self._broken(keys, "a number must be below 1.8e308", value=text)
        except ValueError:
            return self._broken(keys, f"does not read as {tag.removeprefix(_TAG)}", value=text)

    def _bad_tag(self, node: yaml.Node, keys: Keys) -> None:
        rule = f"the tag {node.tag!r} has no meaning in a sweep file"
        self._broken(keys, rule, next_step="write plain values, without '!'")

    def _broken(self, keys: Keys, rule: str, **details: Any) -> None:
        self._document.add(keys, rule, **details)
        self._document.broken.add(keys)

    def _substituted(self, text: str, keys: Keys) -> str | None:
        """The text with references to the environment replaced; None, with the mistake noted, where one is wrong."""
        if "${" not in text:
            return text
        wrong: list[tuple[str, str]] = []

        def value(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            inside = _INSIDE.fullmatch(match[1] or "")
            if not inside:
                rule = "a reference to the environment is ${NAME} or ${NAME:-default}"
                wrong.append((rule, "write $${ for the characters ${"))
                return ""
            name, has_default, default = inside.groups()
            content = self._environ.get(name)
            if is_secret_name(name) or secrets_in(content or ""):
                self._document.secret[keys] = text
                if keys not in SECRET_PLACES:
                    wrong.append(secret_here(name, keys))
            if content is None and not has_default:
                next_step = f"export {name}=..., or give a default: ${{{name}:-...}}"
                wrong.append((f"the environment variable {name} is not set", next_step))
            return content or default or ""

        replaced = _REFERENCE.sub(value, text)
        if secrets_in(replaced):
            self._document.secret[keys] = text
        if not wrong:
            return replaced
        rule, next_step = wrong[0]
        self._broken(keys, rule, value=text, next_step=next_step)
        return None


def _integer(text: str) -> int:
    number = int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    float(number)  # what is larger is no number of a training, and `repr` refuses thousands of digits
    return number


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
    if "another document" in problem:
        return "a file holds one sweep: remove '---' and what follows, or make a file of each"
    if "mapping values are not allowed" in problem:
        return "one 'key: value' a line, equally indented; quote text that holds ': '"
    if "alias" in problem or "anchor" in problem or "directive" in problem or "cannot start" in problem:
        return "quote the value if it is text"
    return "check the indentation, quotes and brackets up to this place"


def _override(document: Document, environ: Mapping[str, str], override: str, place: Place) -> None:
    """Apply one `path.to.key=value` to the document; its mistakes are noted there."""
    path, equals, text = override.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not equals or not all(names):
        next_step = "for example --set axes.weight_decay.points=48"
        return document.add((), "an override is path=value", at=place, next_step=next_step)
    keys: Keys = ()
    node: Any = document.data
    for name in names:
        parent, shown = node, ".".join(map(str, keys))
        if isinstance(parent, list):
            if not (name.isdecimal() and int(name) < len(parent)):
                rule = f"'{shown}' is a list of {len(parent)} values; it has no '{name}'"
                next_step = f"replace all of it: --set '{shown}=[...]'"
                return document.add(keys, rule, at=place, choices=range(len(parent)), next_step=next_step)
            keys, node = (*keys, int(name)), parent[int(name)]
        elif isinstance(parent, dict):
            keys, node = (*keys, name), parent.get(name)
        else:
            rule, next_step = f"'{shown}' is a value: nothing can be set inside it", f"replace it: --set {shown}=..."
            return document.add(keys, rule, at=place, value=parent, next_step=next_step)
        if node is None and len(keys) < len(names):  # absent, or written without a value
            document.forget(keys)
            document.places[keys] = (place, place)
            node = parent[keys[-1]] = {}
    document.forget(keys)
    document.places[keys] = (place, place)
    parent[keys[-1]] = None
    try:
        # A colour, not a comment: there is nothing before it.
        text = f"'{text}'" if re.fullmatch(r"#[0-9A-Za-z]+", text) else text
        builder = _Builder(document, environ, lambda _line, _column: place, text)
        parent[keys[-1]] = None if builder.node is None else builder.build(builder.node, keys)
    except UserError as error:
        next_step = "quote the value, for the shell and for YAML"
        document.add(keys, error.mistakes[0].rule, at=place, value=text, next_step=next_step)
        document.broken.add(keys)
