"""Reference pages, made from the code that they describe."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import phasefront
from jobs.catalogue import BUILT_IN, load_job
from jobs.job import ParamSpec, specs
from orchestrator.analyses.kinds import KINDS
from orchestrator.axes import AXIS_MODELS
from orchestrator.cli import parser
from orchestrator.phases.style import FigureStyle
from orchestrator.results.columns import ABOUT, ANYWHERE, MEANINGS
from orchestrator.results.dictionary import PREFIXES, TRIAL
from orchestrator.sweep.file import Resources, SearchKeys, SweepFile, Tracking, UntilKeys
from orchestrator.target import TARGETS

Row = Sequence[str]


def pages() -> dict[str, str]:
    """Name of a page -> its text in Markdown."""
    return {
        "command-line": _command_line(),
        "sweep-file": _sweep_file(),
        "jobs": _jobs(),
        "python": _python(),
        "columns": _columns(),
    }


def sweep_page(name: str, path: Path) -> str:
    """The page of a published sweep: how to get and run it, and its text."""
    return f"""# {name}

```sh
phasefront examples {name} --copy
phasefront plan {path.name}
phasefront run {path.name}
```

What it must show, and what was measured: [published sweeps]({"../" * (name.count("/") + 2)}configs/README.md).

```yaml title="{path.name}"
{path.read_text(encoding="utf-8").strip()}
```
"""


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(value: Any) -> str:
    return f"`{value}`"


# The command line


def _command_line() -> str:
    main = parser()
    commands = _subparsers(main)
    parts = [
        "# Command line\n",
        "Generated from the parser of `phasefront`; the guide is in [Commands](../commands.md).\n",
        f"{_sentence(main.description)} {_sentence(main.epilog)}\n",
        _table(("command", "what it does"), ((f"[`{name}`](#{name})", each.help) for name, each in commands)),
    ]
    return "\n".join([*parts, *(_command(name, each.parser) for name, each in commands)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Command:
    help: str
    parser: argparse.ArgumentParser


def _subparsers(main: argparse.ArgumentParser) -> list[tuple[str, _Command]]:
    (action,) = (each for each in main._actions if isinstance(each, argparse._SubParsersAction))
    helps = {each.dest: each.help or "" for each in action._choices_actions}
    return [(name, _Command(help=helps.get(name, ""), parser=sub)) for name, sub in action.choices.items()]


def _command(name: str, sub: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(prog=sub.prog, width=100)
    formatter.add_usage(sub.usage, sub._actions, sub._mutually_exclusive_groups)
    usage = formatter.format_help().removeprefix("usage: ").strip()
    rows = [
        (_code(_invocation(action)), (action.help or "") % {"default": action.default})
        for action in sub._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    text = f"## {name}\n\n{_sentence(sub.description)}\n\n```text\n{usage}\n```\n"
    return text + ("\n" + _table(("argument", "meaning"), rows) if rows else "")


def _invocation(action: argparse.Action) -> str:
    metavar = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    if not action.option_strings:
        return f"[{value}]" if action.nargs == "?" else value
    value = "" if action.nargs == 0 else f" [{value}]" if action.nargs == "?" else f" {value}"
    return ", ".join(action.option_strings) + value


def _sentence(text: str | None) -> str:
    return "" if not text else text if text.endswith(".") else text + "."


# Keys of a sweep file


def _sweep_file() -> str:
    sections = [
        ("Top level", SweepFile),
        ("search", SearchKeys),
        ("search.until", UntilKeys),
        ("figure", FigureStyle),
        ("resources", Resources),
        ("tracking", Tracking),
    ]
    parts = [
        "# Keys of a sweep file\n",
        "Generated from the models that check a sweep file. The guide is in [Sweep files](../sweep-files.md); "
        "parameters and thresholds, which stand under `axes`, `fixed` and `phases`, are those of the [job](jobs.md). "
        "`phasefront schema` prints all of this as a JSON Schema for editors.\n",
        *(_model(f"`{name}`" if name != "Top level" else name, model) for name, model in sections),
        "## Axes\n\nAn axis is a list of values, or a mapping with a scale.\n",
        *(_model(f"`scale: {name}`", model, 3) for name, model in AXIS_MODELS.items()),
        "## Targets of a search\n",
        *(_model(f"`{target.example}`", target, 3) for target in TARGETS if target.model_fields),
        "## Analyses\n\nEach entry of `analysis:` has a kind. What they compute is in [Analyses](../analysis.md).\n",
        *(_model(f"`kind: {name}`", model, 3) for name, model in KINDS.items()),
    ]
    return "\n".join(parts)


def _model(title: str, model: type[BaseModel], level: int = 2) -> str:
    rows = []
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        valid = str(extra.get("x-valid", "")) if isinstance(extra, dict) else ""
        meaning = (info.description or "").removesuffix(f" Valid: {valid}.")
        rows.append((_code(info.alias or name), meaning, valid, _default(info.get_default())))
    return f"{'#' * level} {title}\n\n" + _table(("key", "meaning", "valid", "default"), rows)


def _default(value: Any) -> str:
    if value is PydanticUndefined or value is ...:
        return "required"
    if value is None or isinstance(value, BaseModel) or value in ({}, [], ()):
        return ""
    return _code({True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value)


# Jobs


def _jobs() -> str:
    parts = [
        "# Parameters of the jobs\n",
        "Generated from the built-in jobs. What they train is in [Jobs](../jobs.md).\n",
    ]
    for name in BUILT_IN:
        job = load_job(name)
        parts += [
            f"## {name}\n",
            f"Phases: {', '.join(map(_code, job.phases))}. Metrics: {', '.join(map(_code, job.metrics))}.\n",
            f"### Parameters of {name}\n",
            _specs(specs(job.Params).values()),
            f"### Thresholds of {name}\n\nUnder `phases:` in a sweep file.\n",
            _specs(specs(job.Thresholds).values()),
        ]
    return "\n".join(parts)


def _specs(found: Iterable[ParamSpec]) -> str:
    rows = [
        (
            _code(spec.name),
            spec.meaning,
            spec.unit,
            spec.describe_range(),
            "required" if spec.required else _default(spec.default),
        )
        for spec in found
    ]
    return _table(("name", "meaning", "unit", "valid", "default"), rows)


# Python


def _python() -> str:
    parts = [
        "# Python\n",
        "Generated from the docstrings of `phasefront`. The guide is in [Results in a notebook](../notebooks.md).\n",
    ]
    for name in sorted(phasefront.__all__, key=lambda name: (inspect.isclass(getattr(phasefront, name)), name)):
        value = getattr(phasefront, name)
        parts.append(f"## {name}\n")
        if inspect.isclass(value):
            parts += [_docstring(value), *_members(name, value)]
        else:
            parts += [_signature(f"phasefront.{name}", value), _docstring(value)]
    return "\n".join(parts)


def _members(owner: str, kind: type) -> Iterator[str]:
    for name, value in vars(kind).items():
        function = value.fget if isinstance(value, property) else getattr(value, "func", value)
        if name.startswith("_") or not callable(function) or not function.__doc__:
            continue
        yield f"### {owner}.{name}\n"
        if function is value:
            yield _signature(name, function)
        yield _docstring(function)


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    given = [str(each).replace("'", "") for each in signature.parameters.values() if each.name != "self"]
    kinds = [each.kind for each in signature.parameters.values() if each.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        given.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = signature.return_annotation
    end = "" if returned is signature.empty else f" -> {returned}"
    one = f"{name}({', '.join(given)}){end}"
    if len(one) > 90:
        one = f"{name}(\n    " + ",\n    ".join(given) + f",\n){end}"
    return f"```python\n{one}\n```\n"


def _docstring(value: Any) -> str:
    """A docstring, with its sections Args, Returns and Raises as lists."""
    out, item = [], re.compile(r"^    (\w[\w., ]*): (.*)")
    in_section = False
    for line in inspect.getdoc(value).splitlines() if inspect.getdoc(value) else []:
        if line in ("Args:", "Returns:", "Raises:", "Yields:"):
            out.append(f"\n**{line[:-1]}**\n")
            in_section = True
        elif in_section and (found := item.match(line)):
            out.append(f"- `{found[1]}`: {found[2]}")
        else:
            out.append(("  " + line.strip() if line.startswith("     ") else line) if in_section else line)
    return "\n".join(out) + "\n"


# Columns


def _columns() -> str:
    name = "NAME"
    trials = {
        **TRIAL,
        "each parameter": "As in [Parameters of the jobs](jobs.md).",
        "each observation": "A number that summarises the trial's curves; null: not reached, or not observed.",
        **{prefix + name: meaning.format(name) for prefix, meaning in PREFIXES.items()},
        f"{name}_after, {name}_by": "Bounds of a step: the event came in (after, by]; null: not bounded.",
        f"{name}_censored_at": f"Bound up to which {name} was not reached; null if it was reached.",
    }
    parts = [
        "# Columns of the tables\n",
        "Generated from what `columns.txt`, beside the tables of an output folder, is made of. `NAME` stands for the "
        "name of an axis, metric or observation. `phasefront export` writes the same for its files, as "
        "`data_dictionary.csv`.\n",
    ]
    for file, about in ABOUT.items():
        meanings = {_columns_of(p): _meaning(text) for p, text in MEANINGS.get(file, {}).items()}
        parts.append(f"## `{file}`\n\n{about}\n")
        if columns := trials if file == "trials.parquet" else meanings:
            parts.append(_table(("column", "meaning"), _described(columns)))
    others = {_columns_of(pattern): _meaning(text) for pattern, text in ANYWHERE.items()}
    parts.append(
        "## In several files\n\nEvery table but that of the trials has its axes as columns, and some of these.\n"
    )
    return "\n".join([*parts, _table(("column", "meaning"), _described(others))])


def _described(columns: Mapping[str, str]) -> Iterator[Row]:
    for names, meaning in columns.items():
        plain = names.startswith("each ")
        yield names if plain else ", ".join(map(_code, names.split(", "))), meaning[0].upper() + meaning[1:]


def _columns_of(pattern: str) -> str:
    """The names of columns that a pattern stands for."""
    names = [pattern] if "(5|95)" in pattern else pattern.split("|")
    names = [name.replace("(5|95)", level) for name in names for level in ("5", "95")]
    return ", ".join(dict.fromkeys(name.replace("(.+)", "NAME") for name in names))


def _meaning(text: str) -> str:
    return text.format("NAME", "5% (95%)").replace("(95%)%", "(95%)")
