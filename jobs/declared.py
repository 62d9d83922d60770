"""How a user's function takes its parameters, and what it declares about them.

A function is `train(params, seed, device, report)`, where `params` is a dict with any names, or an instance of the
class that it is annotated with (a subclass of `jobs.job.Params`, or a plain dataclass). Or it takes the parameters by
name: `train(*, learning_rate=0.1, width: int, seed, report)`, where all arguments but `seed`, `device` and `report`
are parameters. A declared parameter has the type of its annotation, or else of its default. Either way a further
argument `state`, without annotation and default, makes long trainings continue (`jobs.function_state`).
"""

from __future__ import annotations

import dataclasses
import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jobs.job import JobNotFound, ParamError, Params, Scalar, as_dict, param

SIGNATURE = "train(params, seed, device, report)"
BY_NAME = "train(*, learning_rate=0.1, seed, report)"
_OURS = ("seed", "device", "report")
_ORDER = ("params", *_OURS)
_STATE = "state"
_MEANING = "parameter of the function"
_KINDS = (int, float, bool, str)


@dataclass(frozen=True, kw_only=True)
class OpenParams(Params):
    """Parameters of a function that declares none: any names, each with the type of its value."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_params, (as_dict(self),)


@cache
def _open_type(names: tuple[str, ...], types: tuple[type, ...]) -> type[OpenParams]:
    fields = [(name, kind, param(meaning=_MEANING)) for name, kind in zip(names, types, strict=True)]
    # The types are objects, not strings, so `get_type_hints` has nothing to look up.
    return dataclasses.make_dataclass("OpenParams", fields, bases=(OpenParams,), frozen=True, kw_only=True)


def open_params(values: Mapping[str, Any]) -> OpenParams:
    """Parameters with exactly these names, each with the type of its value.

    Raises:
        ParamError: a name is not a Python name, or a value is not a finite number, true, false or text.
    """
    names, types = tuple(values), tuple(map(type, values.values()))
    for name, kind in zip(names, types, strict=True):
        if kind not in _KINDS:
            raise ParamError(name, "must be a number, true, false or text", values[name])
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
            raise ParamError(name, "is not a name that Python accepts for a parameter", values[name])
    return _open_type(names, types)(**values)


class WatchedParams(dict[str, Scalar]):
    """The parameters of one trial as a dict that knows which of them were not read."""

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        super().__init__(values)
        self.unread = set(values)

    def __getitem__(self, name: str) -> Scalar:
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dict, like the other methods."""
        self.unread.discard(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.unread.discard(name)
        return super().pop(name, *default)

    def __contains__(self, name: object) -> bool:
        self.unread.discard(str(name))
        return super().__contains__(name)

    def _read_all(self) -> None:
        self.unread.clear()

    def __iter__(self) -> Iterator[str]:  # Python's `f(**params)` and `dict(params)` use it where it is overridden
        self._read_all()
        return super().__iter__()

    def keys(self) -> Any:
        self._read_all()
        return super().keys()

    def values(self) -> Any:
        self._read_all()
        return super().values()

    def items(self) -> Any:
        self._read_all()
        return super().items()

    def copy(self) -> dict[str, Scalar]:
        self._read_all()
        return super().copy()

    def __or__(self, other: Any) -> Any:
        self._read_all()
        return super().__or__(other)

    def __ror__(self, other: Any) -> Any:
        self._read_all()
        return super().__ror__(other)


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """How one function takes its parameters."""

    params: type[Params] | None = None
    """Its declared parameters; None: any names."""
    made: type | None = None
    """The dataclass of which it gets an instance, where that is not `params` itself."""
    by_name: tuple[str, ...] | None = None
    """Which of seed, device and report it takes, where it takes all arguments by name; None: in their order."""
    takes_state: bool = False
    """Whether it takes a `state`."""

    @property
    def takes_dict(self) -> bool:
        """Whether its first argument is a dict."""
        return self.params is None and self.by_name is None

    def call(
        self,
        function: Callable[..., Any],
        given: Params | dict[str, Scalar],
        seed: int,
        device: str,
        report: Any,
        state: Any = None,
    ) -> Any:
        """What the function returns; `given` is a `params`, or a dict where it takes one."""
        values = given if isinstance(given, dict) else as_dict(given)
        further = {_STATE: state} if self.takes_state else {}
        if self.by_name is not None:
            ours = {"seed": seed, "device": device, "report": report}
            return function(**values, **{name: ours[name] for name in self.by_name}, **further)
        if self.made is not None:
            return function(self.made(**values), seed, device, report, **further)
        return function(given, seed, device, report, **further)


def declaration_of(function: Callable[..., Any]) -> Declaration:
    """How a function takes its parameters.

    Raises:
        JobNotFound: it takes other arguments, or its annotations are not valid; the message says what is.
    """
    name = f"function {getattr(function, '__qualname__', function)!r}"
    signature = inspect.signature(function)
    arguments = list(signature.parameters.values())
    if any(_is_state(a) for a in arguments):
        rest = signature.replace(parameters=[a for a in arguments if not _is_state(a)])
        return dataclasses.replace(_declaration(function, name, rest), takes_state=True)
    return _declaration(function, name, signature)


def _is_state(argument: inspect.Parameter) -> bool:
    """Whether this is the argument for the state, and not a parameter of that name."""
    empty = inspect.Parameter.empty
    by_keyword = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
    plain = argument.annotation is empty and argument.default is empty
    return argument.name == _STATE and by_keyword and plain


def _declaration(function: Callable[..., Any], name: str, signature: inspect.Signature) -> Declaration:
    """The same, of a function without a state."""
    arguments = list(signature.parameters.values())
    try:
        signature.bind(None, 0, "cpu", None)
    except TypeError:
        takes = {a.name for a in arguments if a.kind not in (a.POSITIONAL_ONLY, a.VAR_POSITIONAL, a.VAR_KEYWORD)}
        positional = any(a.kind in (a.POSITIONAL_ONLY, a.VAR_POSITIONAL) for a in arguments)
        if positional or not {"seed", "report"} <= takes or "params" in takes:
            raise JobNotFound(
                f"{name} is not a job: it must take {SIGNATURE}, or its parameters by name as in {BY_NAME}; "
                f"it takes {signature}"
            ) from None
        return _by_name(function, name, arguments)
    for argument, own in zip(arguments, _ORDER, strict=False):
        if argument.name in _ORDER and argument.name != own:
            raise JobNotFound(f"{name}: its arguments are passed by position, as in {SIGNATURE}; it takes {signature}")
    first = arguments[0]
    hint = _evaluated(function, name, first.name, first.annotation)
    if inspect.isclass(hint) and issubclass(hint, Params):
        return Declaration(params=hint if hint is not Params else None)
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return Declaration(params=_of_dataclass(hint, name), made=hint)
    if hint in _KINDS:
        raise JobNotFound(
            f"{name}: its first argument {first.name!r} gets all parameters as a dict; to take them by name, put * "
            f"before the first argument, as in {BY_NAME}"
        )
    return Declaration()


def _evaluated(function: Callable[..., Any], name: str, argument: str, hint: Any) -> Any:
    """An annotation, which may be text."""
    if not isinstance(hint, str) or not isinstance(function, FunctionType):
        return hint
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": hint}), function.__globals__)["it"]
    except NameError as error:
        raise JobNotFound(
            f"{name}: the annotation {hint!r} of {argument!r} does not exist at run time ({error}); "
            "import it outside TYPE_CHECKING, or leave the annotation out"
        ) from error


def _by_name(function: Callable[..., Any], name: str, arguments: list[inspect.Parameter]) -> Declaration:
    own = tuple(a.name for a in arguments if a.name in _OURS)
    if any(a.kind is a.VAR_KEYWORD for a in arguments):
        return Declaration(by_name=own)
    fields = []
    for a in arguments:
        if a.name not in _OURS:
            empty = inspect.Parameter.empty
            hint = None if a.annotation is empty else _evaluated(function, name, a.name, a.annotation)
            fields.append(_field(name, a.name, hint, dataclasses.MISSING if a.default is empty else a.default))
    return Declaration(params=_made(fields), by_name=own)


def _of_dataclass(hint: type, name: str) -> type[Params]:
    hints = get_type_hints(hint)
    fields = []
    for f in dataclasses.fields(hint):
        if not f.init:
            continue
        if f.default_factory is not dataclasses.MISSING:
            raise JobNotFound(f"{name}: field {f.name!r} of {hint.__name__} has a default_factory; give it a default")
        if "param" in f.metadata:
            fields.append((f.name, hints[f.name], dataclasses.field(default=f.default, metadata=f.metadata)))
        else:
            fields.append(_field(name, f.name, hints[f.name], f.default))
    return _made(fields)


def _made(fields: list[tuple[str, type, Any]]) -> type[Params]:
    return dataclasses.make_dataclass("FunctionParams", fields, bases=(Params,), frozen=True, kw_only=True)


def _field(function: str, name: str, hint: Any, default: Any) -> tuple[str, type, Any]:
    """A field of a `Params` class.

    Raises:
        JobNotFound: the parameter has no type that a sweep file can give, or a default of another one.
    """
    kind, choices = _kind(hint) if hint is not None else (type(default), ())
    if kind not in _KINDS:
        raise JobNotFound(
            f"{function}: the type of its parameter {name!r} is not known; annotate it with int, float, bool, str or "
            "Literal[...], or give it such a default"
        )
    if default is not dataclasses.MISSING:
        if kind is float and type(default) is int:
            default = float(default)
        if type(default) is not kind or (choices and default not in choices):
            raise JobNotFound(f"{function}: the default of its parameter {name!r} must be {_said(kind, choices)}")
    return name, kind, param(default, meaning=_MEANING, choices=choices)


def _kind(hint: Any) -> tuple[Any, tuple[Scalar, ...]]:
    """The type of an annotation, and the choices of a `Literal`."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        kinds = {type(choice) for choice in choices}
        return (kinds.pop() if len(kinds) == 1 else None), choices
    if get_origin(hint) in (Union, UnionType):
        return (float if set(get_args(hint)) == {int, float} else None), ()
    return hint, ()


def _said(kind: type, choices: tuple[Scalar, ...]) -> str:
    return f"one of {', '.join(map(str, choices))}" if choices else f"of type {kind.__name__}"
