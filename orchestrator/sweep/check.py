"""The sweep file against its job: names, values, zipped groups, conditions and combinations."""

from __future__ import annotations

import contextlib
import math
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
from jobs.catalogue import load_job
from jobs.function import described
from jobs.job import Job, JobNotFound, ParamError, Params, ParamSpec, Scalar, specs
from orchestrator.axes import (
    Axis,
    AxisModel,
    Cycle,
    RangeAxis,
    TooManyTrials,
    ValuesAxis,
    dimensions,
    expand,
    points_of,
)
from orchestrator.checkpoints.store import SCHEMES
from orchestrator.dispatch.capacity import ACCELERATOR, DEVICES, OWN_NAMES, TPUS, WHOLE_DEVICES
from orchestrator.errors import NOTHING, did_you_mean, show
from orchestrator.output import importing
from orchestrator.printable import last_line
from orchestrator.secrets import shown
from orchestrator.sweep.document import Document, Keys
from orchestrator.sweep.file import number_advice, parse_axis, unknown, valid_values
from orchestrator.trial import Trial

_JOBS = Path(jobs.__file__).parent
"""The job's interface; the jobs themselves are in its folders."""
_ORCHESTRATOR = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A job, and the names and values that a sweep file may give it."""

    job: Job[Any]
    spec: str
    """The job as the file names it."""
    params: Mapping[str, ParamSpec]
    thresholds: Mapping[str, ParamSpec]

    @property
    def defaults(self) -> dict[str, Scalar]:
        """The parameters that have a default, with that default."""
        return {name: spec.default for name, spec in self.params.items() if not spec.required}


def find_job(document: Document) -> Vocabulary | None:
    """The job that the document names; None, with the mistake noted, where there is none."""
    keys: Keys = ("job",)
    spec = document.get(keys)
    if not isinstance(spec, str) or not spec or keys in document.broken:
        return None
    try:
        with importing():
            job = load_job(spec)
        params = {} if job.open_params else specs(job.Params)
        return Vocabulary(job=job, spec=spec, params=params, thresholds=specs(job.Thresholds))
    except JobNotFound as error:
        step = "name a built-in job, or my_package.my_module:MyJob" if error.choices else "correct the function"
        next_step = error.next_step or did_you_mean(spec, error.choices, step)
        document.add(keys, str(error), value=spec, choices=error.choices, next_step=next_step)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's module raises at import, SystemExit included
        rule = f"job {spec!r} cannot be loaded: {last_line(described(error))}"
        document.add(keys, rule, value=spec, next_step=f"correct {where_raised(error, spec)}")
    return None


def check_checkpoints(document: Document) -> None:
    """Note an address of checkpoints that would be taken for a folder."""
    keys: Keys = ("resources", "checkpoints")
    address = document.get(keys)
    scheme, colon, rest = address.partition(":") if isinstance(address, str) else ("", "", "")
    is_known, is_address = scheme in SCHEMES, rest.startswith("//")
    if not colon or "/" in scheme or is_known == is_address:  # such as C:/data
        return
    write = f"write {scheme}://..., or ./{scheme}:... for a folder"
    document.add(
        keys,
        "checkpoints are kept in a folder, or at an address with a scheme that pyarrow reads",
        value=shown(address),
        choices=("a folder", *(f"{name}://" for name in SCHEMES)),
        next_step=write if is_known else did_you_mean(scheme, SCHEMES, "name a folder, or one of these schemes"),
    )


_OWN_KEYS = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker", "memory": "memory_gb"}


def check_custom(document: Document) -> None:
    """Note custom resources for which there are other keys, and those of which Ray takes no such amount."""
    keys: Keys = ("resources", "custom")
    custom = document.get(keys)
    for name, amount in custom.items() if isinstance(custom, dict) else ():
        if not name or name in OWN_NAMES or str(name).startswith(ACCELERATOR):
            step = "name a resource that nodes were started with (`ray start --resources`)"
            if name in _OWN_KEYS:
                step = f"write resources.{_OWN_KEYS[name]}"
            elif name and name not in OWN_NAMES:
                step = "write resources.accelerator_type"
            document.add((*keys, name), f"'{name}' is no custom resource", key=True, next_step=step)
        elif name in DEVICES and isinstance(amount, float | int) and 0 < amount < math.inf:
            _check_devices(document, (*keys, name), name, amount)


def _check_devices(document: Document, keys: Keys, name: str, amount: float) -> None:
    """Note an amount of devices that Ray refuses when a worker is started."""
    if name == "TPU":
        if amount not in TPUS:
            rule = "'custom.TPU' must be a number of chips that Ray gives"
            document.add(keys, rule, value=amount, choices=TPUS, next_step="name one of these")
    elif amount % 1 and (name in WHOLE_DEVICES or amount > 1):
        part = "" if name in WHOLE_DEVICES else ", or a part of one"
        rule = f"'custom.{name}' must be a whole number of devices{part}"
        document.add(keys, rule, value=amount, next_step=f"for example {max(1, int(amount))}")


def where_raised(error: BaseException, spec: str) -> str:
    """The last place outside of libraries and of this program: what they raise is rarely their mistake."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), "<")
    last = [frame for frame in frames if not frame.filename.startswith(libraries) and not _is_ours(frame.filename)][-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else f"the module {spec.partition(':')[0]}"


def _is_ours(filename: str) -> bool:
    path = Path(filename)
    return path.parent == _JOBS or _ORCHESTRATOR in path.parents


def check_values(document: Document, known: Vocabulary) -> tuple[list[Axis], dict[str, Scalar], dict[str, Scalar]]:
    """Axes, fixed parameters and thresholds, each value in its parameter's type; mistakes are noted."""
    fixed = _section(document, known, "fixed", known.params, "parameter")
    phases = _section(document, known, "phases", known.thresholds, "threshold")
    groups = _groups(document)
    axes = []
    for name in _mapping(document, "axes"):
        keys: Keys = ("axes", name)
        if not known.job.open_params and name not in known.params:
            document.forget_mistakes(keys)
            unknown(document, keys, "parameter", known.params, where=f" of job {known.spec!r}")
        if document.wrong_under(keys):
            continue
        written = parse_axis(document.get(keys))
        values = _axis_values(document, known.params.get(name), keys, written, zipped=name in groups)
        when = _conditions(document, known, keys, written)
        if document.wrong_under(keys):
            continue
        if name in fixed and not when:
            rule = f"'{name}' is fixed, and is an axis too, at {document.place(keys, key=True).text}"
            document.add(("fixed", name), rule, key=True, value=fixed[name], next_step="keep one of the two")
        if name not in groups:  # zipped values are matched by position; others are needed once
            values = list({(type(value), value): value for value in values}.values())
        between = not isinstance(written, ValuesAxis) and written.points is None
        group, scale = groups.get(name), written.scale
        axes.append(Axis(name=name, scale=scale, values=tuple(values), when=when, group=group, between=between))
    _check_zip(document, axes)
    for name, spec in known.params.items():
        if spec.required and name not in fixed and name not in _mapping(document, "axes"):
            where: Keys = ("fixed",) if "fixed" in document.data else ("job",)
            rule = f"parameter '{name}' of job {known.spec!r} is missing: {spec.describe_range()} ({spec.meaning})"
            document.add(where, rule, key=True, next_step=f"add '{name}: ...' under 'fixed:' or 'axes:'")
    return axes, fixed, phases


def _mapping(document: Document, section: str) -> dict[str, Any]:
    content = document.data.get(section)
    return content if isinstance(content, dict) else {}


def _section(
    document: Document, known: Vocabulary, section: str, valid: Mapping[str, ParamSpec], kind: str
) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    is_open = known.job.open_params and section == "fixed"
    for name, value in _mapping(document, section).items():
        keys: Keys = (section, name)
        if not is_open and name not in valid:
            document.forget_mistakes(keys)
            unknown(document, keys, kind, valid, where=f" of job {known.spec!r}")
        elif not document.wrong_under(keys):
            values[name] = _checked(document, valid.get(name), keys, value)
    return values


_SWITCHES = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}
"""What is written for a boolean, and what YAML 1.2 has."""


def _checked(document: Document, spec: ParamSpec | None, keys: Keys, value: Any, next_step: str = "") -> Scalar:
    """The value in the parameter's type; unchanged, with a mistake noted, where it breaks the rule."""
    try:
        if spec:
            return spec.check(value)
        if isinstance(value, float) and not abs(value) < float("inf"):
            raise ParamError(str(keys[1]), "must be a finite number", value)
    except ParamError as error:
        if spec and spec.type is str and not isinstance(value, str):
            next_step = next_step or "put it in quotes"
        elif isinstance(value, str) and error.choices:
            next_step = did_you_mean(value, map(str, error.choices))
        elif isinstance(value, str) and spec and spec.type is not str and value[:1].isdecimal():
            next_step = number_advice(value)
        elif spec and spec.type is bool and str(value).lower() in _SWITCHES:
            next_step = f"write {_SWITCHES[str(value).lower()]}"
        elif spec and not isinstance(value, str) and 1 in (spec.high, spec.below) and 2 <= value <= 100:
            next_step = f"it is a share, not a percentage: did you mean {value / 100:g}?"
        rule = f"'{error.name}' {error.rule}" + (f" ({spec.meaning})" if spec else "")
        document.add(keys, rule, value=value, choices=error.choices, next_step=next_step)
    except OverflowError:
        document.add(keys, f"'{keys[1]}' is too large a number", value=value)
    result: Scalar = value
    return result


def _axis_values(
    document: Document, spec: ParamSpec | None, keys: Keys, written: AxisModel, *, zipped: bool
) -> list[Scalar]:
    if isinstance(written, ValuesAxis):
        below = (*keys, "values") if isinstance(document.get(keys), dict) else keys
        return [_checked(document, spec, (*below, i), value) for i, value in enumerate(written.values)]
    if spec and spec.type in (bool, str):
        rule = f"'{spec.name}' must be {spec.describe_range()}, and a scale makes numbers"
        document.add((*keys, "scale"), rule, value=written.scale, next_step="list its values: [...]")
        return []
    is_search = document.get(("search", "kind")) == "boundary" or document.wrong_under(("search",))
    if written.points is None and not is_search:
        rule = f"'points' is missing: {valid_values(type(written), 'points')}"
        document.add(keys, rule, key=True, next_step="add 'points: ...'")
        return []
    if written.points is None and written.include:
        rule = "'include' requires 'points': without them a search may choose any value of the range"
        next_step = "add 'points: ...', or remove it"
        document.add((*keys, "include"), rule, key=True, value=written.include, next_step=next_step)
    for position, value in enumerate(written.include):
        _checked(document, spec, (*keys, "include", position), value)
    for end, value in (("from", written.start), ("to", written.to)):
        _checked(document, spec, (*keys, end), value)
    if not document.wrong_under(keys):
        _check_direction(document, keys, written, zipped=zipped)
    values: list[Scalar] = []
    for point in [] if document.wrong_under(keys) else points_of(written):
        next_step = "use 'scale: integer', or list the values" if spec and spec.type is int else ""
        values.append(_checked(document, spec, keys, point, next_step))
        if document.wrong_under(keys):
            break  # the others would break the same rule
    return values


def _check_direction(document: Document, keys: Keys, written: RangeAxis, *, zipped: bool) -> None:
    """A range rises, unless it is zipped, where the direction says which values go together; integers are sorted."""
    is_search = written.points is None
    if zipped and written.scale != "integer" and not is_search:
        return
    if written.start < written.to or (written.start == written.to and not is_search):
        return
    start, to = document.get((*keys, "from")), document.get((*keys, "to"))
    step = f"write 'from: {show(to)}, to: {show(start)}'"
    if written.start == written.to:
        step = "write another 'from' or 'to', or put it under 'fixed:'"
    rule = f"an axis rises: 'from' must be less than 'to' ({show(to)})"
    document.add((*keys, "from"), rule, value=start, next_step=step)


def _conditions(document: Document, known: Vocabulary, keys: Keys, written: AxisModel) -> dict[str, tuple[Scalar, ...]]:
    sweep_names = dict.fromkeys((*_mapping(document, "axes"), *_mapping(document, "fixed")))
    valid = sweep_names if known.job.open_params else known.params
    when: dict[str, tuple[Scalar, ...]] = {}
    for name, among in written.when.items():
        below: Keys = (*keys, "when", name)
        spec = known.params.get(name)
        if name == keys[1]:
            rule = f"axis '{name}' has a condition on itself"
            document.add(below, rule, key=True, next_step="name another parameter")
        elif name not in valid:
            unknown(document, below, "parameter", valid, where=" in a condition")
        elif isinstance(among, list):
            if not among:
                document.add(below, "a condition lists at least one value", value=among)
            when[name] = tuple(_checked(document, spec, (*below, i), value) for i, value in enumerate(among))
        else:
            when[name] = (_checked(document, spec, below, among),)
    return when


def _groups(document: Document) -> dict[str, int]:
    """Axis -> its zipped group; mistakes in `zip` are noted."""
    groups: dict[str, int] = {}
    written = document.data.get("zip")
    axes = _mapping(document, "axes")
    for number, group in enumerate(written if isinstance(written, list) else []):
        if not isinstance(group, list):
            continue
        keys: Keys = ("zip", number)
        if len(group) < 2 and not document.wrong_under(keys):
            rule, next_step = "a zipped group names at least two axes", "write 'zip: [[a, b]]', a list of groups"
            document.add(keys, rule, value=group, choices=tuple(axes), next_step=next_step)
        for position, name in enumerate(group):
            if not isinstance(name, str):
                continue
            if name not in axes:
                rule, next_step = (
                    f"'{name}' is not an axis of this sweep",
                    did_you_mean(name, axes, "add it under 'axes:'"),
                )
                document.add((*keys, position), rule, value=name, choices=tuple(axes), next_step=next_step)
            elif name in groups:
                rule = f"'{name}' is zipped already"
                document.add((*keys, position), rule, value=name, next_step="name each axis once")
            else:
                groups[name] = number
    return groups


def _check_zip(document: Document, axes: list[Axis]) -> None:
    members: dict[int, list[Axis]] = {}
    for axis in axes:
        if axis.group is not None and not axis.between:
            members.setdefault(axis.group, []).append(axis)
    for group, zipped in members.items():
        if len({len(axis.values) for axis in zipped}) > 1:
            lengths = ", ".join(f"{axis.name}: {len(axis.values)}" for axis in zipped)
            next_step = "change 'points', or the lists"
            if any(axis.scale == "integer" for axis in zipped):
                next_step = "integer axes drop points that coincide: list the values, or change 'points'"
            rule = f"zipped axes need equally many values; these have {lengths}"
            document.add(("zip", group), rule, next_step=next_step)


def check_thresholds(document: Document, known: Vocabulary, phases: Mapping[str, Scalar]) -> Params | None:
    """The job's thresholds with those of the file; None, with the mistake noted, where they break a rule."""
    try:
        return known.job.Thresholds(**phases)
    except ParamError as error:
        rule = f"'{error.name}' {error.rule}"
        document.add(("phases", error.name), rule, value=error.value, choices=error.choices, next_step=error.next_step)
    except Exception as error:  # the job's own check may raise anything
        _refused(document, known, ("phases",), error, phases)
    return None


def _refused(document: Document, known: Vocabulary, keys: Keys, error: Exception, values: Mapping[str, Scalar]) -> None:
    rule = f"job {known.spec!r} refuses these values: {type(error).__name__}: {error}"
    step = f"change the values, or correct {where_raised(error, known.spec)}"
    document.add(keys, rule, key=True, value=dict(values), next_step=step)


def combinations(
    document: Document,
    known: Vocabulary,
    axes: list[Axis],
    fixed: Mapping[str, Scalar],
    *,
    replicates: int,
    seed: int,
    also: Iterable[dict[str, Scalar]] = (),
) -> list[Trial]:
    """Every replicate of every distinct setting, in order, replicates together; mistakes are noted.

    Args:
        document: The file.
        known: Its job.
        axes: The axes; those without points stand for their two ends.
        fixed: Fixed parameters.
        replicates: Trials at every setting.
        seed: The sweep's seed.
        also: Further settings to check.
    """
    try:
        if any(len({len(axis.values) for axis in zipped}) > 1 for zipped in dimensions(axes)):
            return []  # of a search, with and without points: `check_search` has noted it
        settings, never = expand(axes, fixed, known.defaults, replicates=replicates)
    except Cycle as error:
        names = [str(name) for name in error.args]
        rule = f"conditions that depend on each other, or on an axis zipped with their own: {', '.join(names)}"
        document.add(("axes", names[0], "when"), rule, key=True, next_step="remove one of the conditions")
        return []
    except TooManyTrials as error:
        rule = f"a sweep has at most 2,000,000 trials; this one has {error.args[0]:,}"
        step = "lower 'points', or let a search choose trials: 'search: {kind: boundary, budget: 500}'"
        document.add(("axes",), rule, key=True, next_step=step)
        return []
    for name in sorted(never):
        keys: Keys = ("axes", name, "when")
        rule = f"empty grid: the condition of axis '{name}' never holds"
        next_step = "a condition can use the other axes, fixed parameters and the job's defaults"
        document.add(keys, rule, key=True, value=document.get(keys), next_step=next_step)
    settings += also
    first: dict[str, Trial] = {}
    trials: list[Trial] = []
    wrong: dict[str | None, list[tuple[Exception, dict[str, Scalar]]]] = {}
    for setting in settings:
        try:
            params = known.job.params_for(setting)
        except Exception as error:  # the job's own check may raise anything
            wrong.setdefault(error.name if isinstance(error, ParamError) else None, []).append((error, setting))
            continue
        trial = Trial(job=known.spec, job_version=known.job.version, params=params, replicate=0, base_seed=seed)
        if trial.id not in first:
            first[trial.id] = trial
            trials.append(trial)
            trials += [trial.with_replicate(number) for number in range(1, replicates)]
    for cases in wrong.values():
        _wrong_combination(document, known, cases, len(settings))
    return trials


def likely(document: Document, known: Vocabulary, axes: Iterable[Axis], fixed: Mapping[str, Scalar]) -> list[Trial]:
    """Trials that show what a sweep observes whose settings have mistakes: those of what is right in it.

    With every choice of words in turn, as an option may add observations: no name is then refused that the sweep has
    once its settings are corrected.
    """
    setting = {axis.name: axis.values[0] for axis in axes if axis.values}
    setting |= {name: value for name, value in fixed.items() if not document.wrong_under(("fixed", name))}
    choices = [{name: choice} for name, spec in known.params.items() for choice in spec.choices]
    trials = []
    for other in ({}, *choices):
        with contextlib.suppress(Exception):  # the job's own check may raise anything
            params = known.job.params_for({**setting, **other})
            trials.append(Trial(job=known.spec, job_version=known.job.version, params=params, replicate=0, base_seed=0))
    return trials


def _wrong_combination(
    document: Document, known: Vocabulary, cases: list[tuple[Exception, dict[str, Scalar]]], total: int
) -> None:
    error, setting = cases[0]
    if not isinstance(error, ParamError):
        _refused(document, known, ("job",), error, setting)
        return
    name = error.name
    keys: Keys = next((k for k in (("axes", name), ("fixed", name)) if document.get(k) is not NOTHING), ("axes",))
    count = "all" if len(cases) == total else f"{len(cases):,} of {total:,}"
    rule = f"'{name}' {error.rule}; got {show(error.value)} in {count} combinations, the first of which is"
    next_step = "change the values, zip the axes (zip:), or make one conditional (when:)"
    document.add(keys, rule, key=True, value=setting, choices=error.choices, next_step=next_step)
