"""The `state` argument of a user's function: what it saves, and what it continues from.

    def train(params, seed, device, report, state):
        model = ...
        if "model" in state:
            model.load_state_dict(state["model"])
        for step in range(state.get("step", 0) + 1, params["steps"] + 1):
            ...
            report(step, loss=loss)
            state.save(step=step, model=model.state_dict())

`save` copies its values only when a checkpoint is due; otherwise it returns at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.state import StateError, TrialState

_LAYOUT, _HELD = "layout", "held"
_KINDS = "biufc"
_ALLOWED = "numbers, text, None, arrays of numbers, tensors, and dicts, lists and tuples of these"


class UnsavedError(TypeError):
    """A value given to `state.save` cannot be saved; the message has its place."""


class FunctionState(Mapping[str, Any]):
    """What an earlier attempt of this trial saved last; empty where it starts.

    Args:
        held: what was saved.
        wanted: whether a checkpoint is due.
        keep: takes the arrays of a new one.
    """

    def __init__(
        self,
        held: Mapping[str, Any],
        wanted: Callable[[], bool],
        keep: Callable[[dict[str, NDArray[Any]]], None],
    ) -> None:
        self._held, self._wanted, self._keep = dict(held), wanted, keep

    def __getitem__(self, name: str) -> Any:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def due(self) -> bool:
        """Whether the next `save` is kept, for values that are costly to make."""
        return self._wanted()

    def save(self, **values: Any) -> None:
        """Offer everything that the training needs to continue from here, after what it has reported so far.

        Raises:
            UnsavedError: a value is of another type than numbers, text, arrays, tensors and containers of these.
        """
        if self._wanted():
            self._keep(to_arrays(values))


def to_arrays(values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Copies of the arrays in nested values, and the layout of everything else."""
    arrays: dict[str, NDArray[Any]] = {}
    layout = _layout(dict(values), "state.save", arrays)
    return {_LAYOUT: _text(layout), **arrays}


def from_arrays(state: TrialState) -> dict[str, Any]:
    """The values of `to_arrays`.

    Raises:
        StateError: they are not valid.
    """
    try:
        values = _value(_read(state.array(_LAYOUT)), state)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, RuntimeError) as error:
        raise StateError(f"what the function saved cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise StateError("what the function saved is not a mapping")
    return values


def with_held(arrays: dict[str, NDArray[Any]], held: Mapping[str, float]) -> dict[str, NDArray[Any]]:
    """The arrays with the report that was not sent yet."""
    return {**arrays, _HELD: _text(dict(held))}


def held_of(state: TrialState) -> dict[str, float]:
    """The report of `with_held`.

    Raises:
        StateError: it is not valid.
    """
    try:
        return {str(name): float(value) for name, value in _read(state.array(_HELD)).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise StateError(f"its last report cannot be read: {error}") from error


def _text(content: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


def _read(text: NDArray[Any]) -> Any:
    return json.loads(text.tobytes())


def _layout(value: Any, place: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if isinstance(value, dict):
        entries = []
        for key, part in value.items():
            if key is not None and type(key) not in (bool, int, float, str):
                raise UnsavedError(f"{place}: keys must be text or numbers; got {key!r}")
            entries.append([key, _layout(part, f"{place}[{key!r}]", arrays)])
        return {"dict": entries}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_layout(part, f"{place}[{k}]", arrays) for k, part in enumerate(value)]}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).clone()
        name = f"a{len(arrays)}"
        arrays[name] = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, dtype=np.uint8)
        return {"tensor": [name, str(value.dtype).removeprefix("torch."), list(value.shape)]}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _KINDS and value.dtype.kind != "c":
        name = f"a{len(arrays)}"
        arrays[name] = np.array(value)
        return {"array": name}
    raise UnsavedError(f"{place} must be made of {_ALLOWED}; got {type(value).__name__}")


def _value(layout: Any, state: TrialState) -> Any:
    ((kind, content),) = layout.items()
    if kind == "value" and (content is None or isinstance(content, (bool, int, float, str))):
        return content
    if kind == "dict":
        return {key: _value(part, state) for key, part in content}
    if kind in ("list", "tuple"):
        parts = [_value(part, state) for part in content]
        return parts if kind == "list" else tuple(parts)
    if kind == "array":
        return np.array(state.array(content))
    if kind == "tensor":
        import torch

        name, dtype, shape = content
        known = getattr(torch, dtype)
        if not isinstance(known, torch.dtype):
            raise StateError(f"there is no type {dtype!r} of tensors")
        data = np.array(state.array(name))
        flat = torch.from_numpy(data).view(known) if data.size else torch.empty(0, dtype=known)
        return flat.reshape(shape)
    raise StateError(f"there is no kind {kind!r} of values")
