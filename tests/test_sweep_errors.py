"""Every mistake in a sweep file is reported with its place, rule, value, valid choices and next step."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
from jobs_for_tests import DescentParams

from jobs.job import specs
from orchestrator.dispatch.capacity import DEVICES
from orchestrator.errors import Mistake, UserError, nearest
from orchestrator.sweep.sweep import Sweep

JOB = "job: jobs_for_tests:Descent\n"
ALL_PARAMETERS = ", ".join(specs(DescentParams))


def mistakes(folder: Path, text: str, overrides: Sequence[str] = (), **environ: str) -> list[str]:
    """The mistakes of a sweep file, each as its text after the file's name."""
    path = folder / "it.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Sweep.load(path, overrides, environ)
    return [mistake.text.removeprefix(f"{path}:") for mistake in caught.value.mistakes]


CASES = {
    "misspelt key": ("replicats: 2", "2:1: unknown key 'replicats'", "did you mean 'replicates'?"),
    "unknown key": ("colour: 2", "2:1: unknown key 'colour'", "valid: name, job, axes, zip, fixed, replicates, seed"),
    "wrong type": ("replicates: many", "2:13: 'replicates' must be a whole number from 1", "value: 'many'"),
    "number in quotes": ("replicates: '2'", "2:13: 'replicates' must be a whole number", "write it without quotes"),
    "fraction": ("replicates: 1.5", "2:13: 'replicates' must be a whole number", "value: 1.5"),
    "boolean for a number": ("seed: true", "2:7: 'seed' must be a whole number", "value: true"),
    "no value": ("replicates:", "2:12: 'replicates' must be a whole number", "value: null"),
    "zero replicates": ("replicates: 0", "2:13: 'replicates' must be a whole number from 1", "value: 0"),
    "negative seed": ("seed: -1", "2:7: 'seed' must be a whole number from 0", "value: -1"),
    "name is a number": ("name: 3", "2:7: 'name' must be text", "put it in quotes"),
    "name is a path": ("name: a/b", "2:7: 'name' must be text without /", "value: 'a/b'"),
    "axes as a list": ("axes: [a]", "2:7: 'axes' must be a mapping of parameter to axis", "value: ['a']"),
    "unknown resource": ("resources: {wokers: 2}", "2:13: unknown key 'wokers'", "did you mean 'workers'?"),
    "no time": (
        "resources: {trial_timeout: 0s}",
        "2:28: 'trial_timeout' must be a number of seconds > 0, a duration such as 90s",
        "write for example 'trial_timeout: 30m'",
    ),
    "resource range": ("resources: {workers: 0}", "2:22: 'workers' must be a whole number >= 1, or auto", "value: 0"),
    "accelerator type as a number": (
        "resources: {accelerator_type: 4090}",
        "2:31: 'accelerator_type' must be text such as L4",
        "put it in quotes",
    ),
    "accelerator type with a colon": (
        "resources: {accelerator_type: 'nvidia:L4'}",
        "2:31: 'accelerator_type' must be text such as L4",
        "write for example 'accelerator_type: L4'",
    ),
    "custom resources as a list": (
        "resources: {custom: [licence]}",
        "2:21: 'custom' must be a mapping of name to amount",
        "value: ['licence']",
    ),
    "amount of a custom resource": (
        "resources: {custom: {licence: 0}}",
        "2:31: 'custom.licence' must be a number >= 0.0001",
        "value: 0",
    ),
    "CPUs as a custom resource": (
        "resources: {custom: {CPU: 2}}",
        "2:22: 'CPU' is no custom resource",
        "write resources.cpus_per_worker",
    ),
    "accelerator as a custom resource": (
        "resources: {custom: {'accelerator_type:L4': 1}}",
        "2:22: 'accelerator_type:L4' is no custom resource",
        "write resources.accelerator_type",
    ),
    "custom resource of Ray's own": (
        "resources: {custom: {object_store_memory: 1}}",
        "2:22: 'object_store_memory' is no custom resource",
        "name a resource that nodes were started with",
    ),
    "more than a device, and not whole": (
        "resources: {custom: {NPU: 1.5}}",
        "2:27: 'custom.NPU' must be a whole number of devices, or a part of one",
        "for example 1",
    ),
    "part of a device that has no parts": (
        "resources: {custom: {neuron_cores: 0.5}}",
        "2:36: 'custom.neuron_cores' must be a whole number of devices",
        "for example 1",
    ),
    "part of a TPU": (
        "resources: {custom: {TPU: 0.5}}",
        "2:27: 'custom.TPU' must be a number of chips that Ray gives",
        "valid: 1, 2, 4, 8",
    ),
    "endless devices": (
        "resources: {custom: {TPU: .inf}}",
        "2:27: 'custom.TPU' must be a number >= 0.0001",
        "value: inf",
    ),
    "resource choice": (
        "resources: {device: cudda}",
        "2:21: 'device' must be one of auto, cpu",
        "did you mean 'cuda'?",
    ),
    "tracking key": ("tracking: {url: x}", "2:12: unknown key 'url'", "did you mean 'uri'?"),
    "tracking type": ("tracking: {uri: 3}", "2:17: 'uri' must be text", "put it in quotes"),
    "duplicate key": ("seed: 1\nseed: 2", "3:1: duplicate key 'seed'; the first is at", "keep one of the two"),
    "duplicate axis": ("axes:\n  steps: [1]\n  steps: [2]", "4:3: duplicate axis 'steps'; the first is at", "keep one"),
    "unknown axis": ("axes:\n  stepz: [1]", "3:3: unknown parameter 'stepz' of job", "did you mean 'steps'?"),
    "axis the job lacks": (
        "axes:\n  colour: [1]",
        "3:3: unknown parameter 'colour' of job",
        f"valid: {ALL_PARAMETERS}",
    ),
    "axis is a number": (
        "axes: {steps: 3}",
        "2:15: an axis is a list of values, or a mapping",
        "put it under 'fixed:'",
    ),
    "axis without value": ("axes:\n  steps:", "3:9: an axis is a list of values, or a mapping", "value: null"),
    "empty list": ("axes: {steps: []}", "2:15: empty grid: axis 'steps' has no values", "list at least one"),
    "empty values": ("axes: {steps: {values: []}}", "2:24: empty grid: 'values' must be", "value: []"),
    "no points": (
        "axes: {steps: {scale: integer, from: 1, to: 9, points: 0}}",
        "2:56: empty grid: 'points' must be a whole number from 1",
        "value: 0",
    ),
    "no scale": ("axes: {steps: {from: 1, to: 9}}", "2:8: 'scale' is missing", "valid: linear, log, integer, values"),
    "bad scale": ("axes: {steps: {scale: lin, from: 1}}", "2:23: unknown scale", "did you mean 'linear'?"),
    "scale is a list": ("axes: {steps: {scale: [log]}}", "2:23: unknown scale", "value: ['log']"),
    "misspelt scale": ("axes: {steps: {scal: log}}", "2:16: unknown key 'scal'", "did you mean 'scale'?"),
    "missing points": (
        "axes: {steps: {scale: log, from: 1, to: 9}}",
        "2:8: 'points' is missing: a whole number",
        "add 'points: ...'",
    ),
    "log from zero": (
        "axes: {weight_decay: {scale: log, from: 0, to: 9, points: 3}}",
        "2:41: 'from' must be a number > 0",
        "value: 0",
    ),
    "integers fall": (
        "axes: {steps: {scale: integer, from: 9, to: 1, points: 3}}",
        "2:38: an axis rises: 'from' must be less",
        "value: 9\n  next:  write 'from: 1, to: 9'",
    ),
    "an axis falls": (
        "axes: {weight_decay: {scale: log, from: 10, to: 0.1, points: 3}}",
        "2:41: an axis rises: 'from' must be less than 'to' (0.1)",
        "value: 10\n  next:  write 'from: 0.1, to: 10'",
    ),
    "misspelt end": (
        "axes: {weight_decay: {scale: log, from: 0.1, too: 10, points: 3}}",
        "2:46: unknown key 'too'",
        "did you mean 'to'?",
    ),
    "points in brackets": (
        "axes: {weight_decay: {scale: log, from: 0.1, to: 10, points: [5]}}",
        "2:62: 'points' must be a whole number",
        "next:  write one value without brackets, for example 'points: 16'",
    ),
    "fixed list to move": (
        "fixed: {steps: [150, 200]}",
        "2:16: 'fixed.steps' must be a finite number",
        "value: [150, 200]\n  next:  'steps' varies then: move it to 'axes:'",
    ),
    "misspelt word": (
        "resources: {workers: autp}",
        "2:22: 'workers' must be a whole number >= 1, or auto",
        "did you mean 'auto'?",
    ),
    "include is no list": (
        "axes: {weight_decay: {scale: log, from: 1, to: 9, points: 3, include: 0}}",
        "2:71: 'include' must be a list of numbers",
        "value: 0",
    ),
    "include is text": (
        "axes: {weight_decay: {scale: log, from: 1, to: 9, points: 3, include: [0, no]}}",
        "2:75: 'include.1' must be a number",
        "value: 'no'",
    ),
    "nested value": ("axes: {steps: [1, [2]]}", "2:19: 'axes.steps.1' must be a finite number, text", "value: [2]"),
    "value out of range": ("axes: {steps: [1, 0, 3]}", "2:19: 'steps' must be a whole number >= 1", "value: 0"),
    "text for a number": ("axes: {steps: [1, '2']}", "2:19: 'steps' must be a whole number", "write it without quotes"),
    "number for text": ("axes: {label: [1]}", "2:16: 'label' must be text", "put it in quotes"),
    "1.1's boolean": ("axes: {nesterov: [yes]}", "2:19: 'nesterov' must be true or false", "value: 'yes'"),
    "bad choice": ("axes: {model: {values: [heavi]}}", "2:25: 'model' not a valid choice", "did you mean 'heavy'?"),
    "from out of range": (
        "axes: {steps: {scale: linear, from: 0, to: 10, points: 11}}",
        "2:37: 'steps' must be a whole number",
        "value: 0",
    ),
    "to out of range": (
        "axes: {dimension: {scale: integer, from: 1, to: 101, points: 3}}",
        "2:49: 'dimension' must be a",
        "value: 101",
    ),
    "include out of range": (
        "axes: {weight_decay: {scale: log, from: 1, to: 9, points: 3, include: [-1]}}",
        "2:72: 'weight_decay' must be a number >= 0 and <= 100",
        "value: -1",
    ),
    "fractional points": (
        "axes: {steps: {scale: linear, from: 1, to: 2, points: 3}}",
        "2:15: 'steps' must be a whole number",
        "use 'scale: integer', or list the values",
    ),
    "infinite": ("axes: {weight_decay: [.inf]}", "2:23: 'axes.weight_decay.0' must be a finite number", "value: inf"),
    "scale of text": (
        "axes: {label: {scale: linear, from: -1e308, to: 1e308, points: 3}}",
        "2:23: 'label' must be text, and a scale",
        "list its values",
    ),
    "too large a number": (
        f"fixed: {{weight_decay: 1{'0' * 400}}}",
        "2:23: a number must be below 1.8e308",
        "value: '1000",
    ),
    "unknown fixed": ("fixed: {dimensions: 3}", "2:9: unknown parameter 'dimensions' of job", "mean 'dimension'?"),
    "fixed out of range": (
        "fixed: {learning_rate: 0}",
        "2:24: 'learning_rate' must be a number > 0 and <= 10",
        "value: 0",
    ),
    "fixed list": (
        "fixed: {steps: [1]}",
        "2:16: 'fixed.steps' must be a finite number, text, true or false",
        "value: [1]",
    ),
    "fixed null": ("fixed: {steps: }", "2:15: 'fixed.steps' must be a finite number", "value: null"),
    "axis also fixed": (
        "axes: {steps: [1]}\nfixed: {steps: 2}",
        "3:9: 'steps' is fixed, and is an axis too, at",
        "keep one",
    ),
    "unknown threshold": ("phases: {arived_loss: 1}", "2:10: unknown threshold 'arived_loss'", "mean 'arrived_loss'?"),
    "threshold range": ("phases: {arrived_loss: 0}", "2:24: 'arrived_loss' must be a number > 0", "value: 0"),
    "thresholds crossed": (
        "phases: {arrived_loss: 2}",
        "2:9: 'far_loss' must be at least arrived_loss (2)",
        "value: 1.0",
    ),
    "zip no list": ("zip: [a]", "2:7: 'zip.0' must be a list of axes", "value: 'a'"),
    "zip number": ("axes: {steps: [1]}\nzip: [[1, steps]]", "3:8: 'zip.0.0' must be the name of an axis", "value: 1"),
    "zip unknown": (
        "axes: {steps: [1]}\nzip: [[steps, stepz]]",
        "3:15: 'stepz' is not an axis of this sweep",
        "did you mean 'steps'?",
    ),
    "zip fixed": (
        "axes: {steps: [1]}\nfixed: {model: plain}\nzip: [[steps, model]]",
        "4:15: 'model' is not an axis",
        "add it under",
    ),
    "zip of one": ("axes: {steps: [1]}\nzip: [[steps]]", "3:7: a zipped group names at least two", "valid: steps"),
    "zip of none": ("axes: {steps: [1]}\nzip: [[]]", "3:7: a zipped group names at least two", "value: []"),
    "zip twice": (
        "axes: {steps: [1], label: [a], model: [plain]}\nzip: [[steps, label], [label, model]]",
        "3:24: 'label' is zipped already",
        "once",
    ),
    "overflowing range": (
        "axes: {weight_decay: {scale: linear, from: 0, to: 1e308, points: 3}}",
        "2:51: 'weight_decay' must be",
        "1e+308",
    ),
    "zip lengths": (
        "axes: {steps: [1, 2], label: [a, b, c]}\nzip: [[steps, label]]",
        "3:7: zipped axes need equally many values; these have steps: 2, label: 3",
        "change 'points', or the lists",
    ),
    "zip lengths of integers": (
        "axes: {steps: {scale: integer, from: 1, to: 4, points: 9}, label: [a]}\nzip: [[steps, label]]",
        "3:7: zipped axes need equally many values; these have steps: 4, label: 1",
        "integer axes drop points that coincide",
    ),
    "condition on nothing": (
        "axes: {heads: {values: [1], when: {modle: plain}}}",
        "2:36: unknown parameter 'modle' in a cond",
        "mean 'model'?",
    ),
    "condition on itself": (
        "axes: {heads: {values: [1], when: {heads: 1}}}",
        "2:36: axis 'heads' has a condition on itself",
        "another",
    ),
    "condition's value": (
        "axes: {heads: {values: [1], when: {model: [plain, planet]}}}",
        "2:51: 'model' not a valid choice",
        "valid: plain",
    ),
    "condition of a mapping": (
        "axes: {heads: {values: [1], when: {model: {a: b}}}}",
        "2:43: 'when.model' must be a finite number, text",
        "{'a': 'b'}",
    ),
    "condition of none": (
        "axes: {heads: {values: [1], when: {model: []}}}",
        "2:43: a condition lists at least one value",
        "value: []",
    ),
    "condition never true": (
        "axes: {heads: {values: [1], when: {model: heavy}}}",
        "2:29: empty grid: the condition of axis 'heads' never holds",
        "value: {'model': 'heavy'}",
    ),
    "conditions in a circle": (
        "axes:\n  heads: {values: [1], when: {steps: 1}}\n  steps: {values: [1], when: {heads: 1}}",
        "3:24: conditions that depend on each other",
        "heads, steps",
    ),
    "condition on a zipped axis": (
        "axes:\n  heads: {values: [1], when: {steps: 1}}\n  steps: [1]\nzip: [[heads, steps]]",
        "3:24: conditions that depend on each other, or on an axis zipped",
        "remove one",
    ),
    "too many trials": (
        "axes:\n  weight_decay: {scale: linear, from: 0, to: 1, points: 2001}\nreplicates: 1000",
        "2:1: a sweep has at most 2,000,000 trials; this one has 2,001,000",
        "",
    ),
    "bad combination": (
        "axes: {dimension: [2, 3], heads: [1, 2]}",
        "2:27: 'heads' must divide dimension (3); got 2 in 1 of 4 combinations, the first of which is",
        "value: {'dimension': 3, 'heads': 2}",
    ),
    "bad combination of fixed": (
        "axes: {dimension: [3, 5]}\nfixed: {heads: 2}",
        "3:9: 'heads' must divide dimension (3); got 2 in all combinations",
        "value: {'heads': 2, 'dimension': 3}",
    ),
    "bad combination with a default": (
        "axes: {heads: [3]}",
        "2:8: 'heads' must divide dimension (4); got 3 in all combinations",
        "make one conditional",
    ),
}


@pytest.mark.parametrize(("body", "begin", "contains"), CASES.values(), ids=CASES)
def test_a_mistake_is_named_at_its_place(tmp_path: Path, body: str, begin: str, contains: str) -> None:
    found = mistakes(tmp_path, JOB + body + "\n")
    assert len(found) == 1, found
    assert found[0].startswith(begin)
    assert contains in found[0]


JOBS = {
    "no job": ("name: x", "1:1: 'job' is missing: a built-in job, or your own", "add 'job: ...'"),
    "unknown": ("job: groking", "1:6: no job is called 'groking'", "did you mean 'grokking'?"),
    "unlike any": ("job: xyz", "1:6: no job is called 'xyz'", "valid: double_descent, grokking"),
    "number": ("job: 3", "1:6: 'job' must be a built-in job, or your own", "value: 3"),
    "no module": (
        "job: nowhere_at_all:Job",
        "1:6: job 'nowhere_at_all:Job': module 'nowhere_at_all' cannot be",
        "value",
    ),
    "no attribute": ("job: jobs_for_tests:Nothing", "1:6: job 'jobs_for_tests:Nothing': module", "Crashing, Descent"),
    "relative": ("job: '..x:Job'", "1:6: job '..x:Job': a module is named as in an import", "did you mean 'x:Job'?"),
    "no module name": ("job: ':Job'", "1:6: job ':Job' cannot be loaded: ValueError", "correct"),
    "abstract": ("job: jobs.job:Job", "1:6: job 'jobs.job:Job' cannot be loaded: TypeError", "abstract"),
    "raises": (
        "job: raises_at_import:Job",
        "1:6: job 'raises_at_import:Job' cannot be loaded: ZeroDivisionError",
        "py:2",
    ),
    "exits": ("job: exits_at_import:Job", "1:6: job 'exits_at_import:Job' cannot be loaded: SystemExit: 5", "py:1"),
    "does not parse": (
        "job: no_python:Job",
        "1:6: job 'no_python:Job' cannot be loaded: SyntaxError",
        "no_python.py:3",
    ),
    "imports nothing": (
        "job: imports_nowhere:Job",
        "1:6: job 'imports_nowhere:Job': module 'nowhere_at_all'",
        "cannot",
    ),
    "required": ("job: jobs_for_tests:Requiring", "1:1: parameter 'size' of job", "add 'size: ...' under 'fixed:'"),
    "required, fixed": (
        "job: jobs_for_tests:Requiring\nfixed: {}",
        "2:1: parameter 'size' of job 'jobs_for_tests:Requiring'",
        "no default",
    ),
    "required, where it is no axis": (
        "job: jobs_for_tests:Requiring\naxes: {size: {values: [1], when: {size2: 1}}}",
        "2:35: unknown parameter",
        "size",
    ),
    "own check raises": (
        "job: jobs_for_tests:Crashing\naxes: {size: [1, 0]}",
        "1:1: job 'jobs_for_tests:Crashing' refuses these values: ZeroDivisionError",
        "value: {'size': 0}",
    ),
    "function's parameter": (
        "job: jobs_for_tests:train\naxes:\n  my-rate: [1, 2]",
        "3:3: 'my-rate' is not a name that Python accepts",
        "got 1",
    ),
    "function's condition": (
        "job: jobs_for_tests:train\naxes:\n  rate: {values: [1], when: {kidn: a}}\n  kind: [a]",
        "3:30: unknown parameter 'kidn' in a condition",
        "did you mean 'kind'?",
    ),
}


@pytest.mark.parametrize(("text", "begin", "contains"), JOBS.values(), ids=JOBS)
def test_a_mistaken_job_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, begin: str, contains: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "raises_at_import.py").write_text("x = 0\n1 / x\n")
    (tmp_path / "exits_at_import.py").write_text("raise SystemExit(5)\n")
    (tmp_path / "no_python.py").write_text("x = 0\n\nthis is no Python\n")
    (tmp_path / "imports_nowhere.py").write_text("import nowhere_at_all\n")
    found = mistakes(tmp_path, text + "\n")
    assert len(found) == 1, found
    assert found[0].startswith(begin)
    assert contains in found[0]


OVERRIDES = {
    "value": ("axes.weight_decay.points=0", "empty grid: 'points' must be a whole number from 1", "value: 0"),
    "type": ("axes.weight_decay.points=many", "'points' must be a whole number from 1", "value: 'many'"),
    "key": ("axes.weight_decay.pionts=3", "unknown key 'pionts'", "did you mean 'points'?"),
    "axis": ("axes.weight_decy.points=3", "unknown parameter 'weight_decy' of job", "did you mean 'weight_decay'?"),
    "section": ("axis.weight_decay.points=3", "unknown key 'axis'", "did you mean 'axes'?"),
    "fixed": ("fixed.stepz=3", "unknown parameter 'stepz' of job", "did you mean 'steps'?"),
    "range": ("fixed.steps=0", "'steps' must be a whole number >= 1", "value: 0"),
    "also an axis": ("fixed.weight_decay=1", "'weight_decay' is fixed, and is an axis too", "value: 1"),
    "resource": ("resources.workers=-1", "'workers' must be a whole number >= 1, or auto", "value: -1"),
    "zip": ("zip=[[weight_decay, steps]]", "'steps' is not an axis of this sweep", "valid: weight_decay"),
    "job": ("job=groking", "no job is called 'groking'", "did you mean 'grokking'?"),
    "list": ("axes.weight_decay=[]", "empty grid: axis 'weight_decay' has no values", "value: []"),
    "list's entry": ("axes.weight_decay=[1, -1]", "'weight_decay' must be a number >= 0", "value: -1"),
    "whole axis": (
        "axes.steps={scale: linear, from: 1, to: 2, points: 3}",
        "'steps' must be a whole",
        "scale: integer",
    ),
    "combination": ("fixed.heads=3", "'heads' must divide dimension (4); got 3 in all combinations", "'heads': 3"),
}


@pytest.mark.parametrize(("override", "rule", "contains"), OVERRIDES.values(), ids=OVERRIDES)
def test_an_invalid_override_is_reported_with_its_place(
    tmp_path: Path, override: str, rule: str, contains: str
) -> None:
    text = JOB + "axes:\n  weight_decay: {scale: log, from: 1, to: 9, points: 3}\n"
    found = mistakes(tmp_path, text, [override])
    assert len(found) == 1, found
    assert found[0].startswith(f"--set {override}: {rule}")
    assert contains in found[0]


def test_all_independent_mistakes_are_reported_in_the_order_of_their_places(tmp_path: Path) -> None:
    text = (
        "nme: x\n"
        "job: jobs_for_tests:Descent\n"
        "axes:\n"
        "  stepz: [1]\n"
        "  weight_decay: {scale: logg, from: -1, to: 2, points: 3}\n"
        "  dimension: {scale: integer, from: 0, to: 1000, points: 0, inclde: []}\n"
        "fixed: {learning_rate: ${RATE}, model: heavi, heads: [1]}\n"
        "replicates: x\n"
        "phases: {far: 1}\n"
        "seed: 1\n"
        "seed: 2\n"
    )
    found = mistakes(tmp_path, text, ["resources.workers=0", "tracking.url=x"])
    assert [mistake.partition(": ")[0] for mistake in found] == [
        "1:1",
        "4:3",
        "5:25",
        "6:37",
        "6:58",
        "6:61",
        "7:24",
        "7:40",
        "7:54",
        "8:13",
        "9:10",
        "11:1",
        "--set resources.workers=0",
        "--set tracking.url=x",
    ]


@pytest.mark.parametrize("amount", [0.5, 1, 1.5, 2, 3, 8, 16])
@pytest.mark.parametrize("name", [*sorted(DEVICES), "licence"])
def test_every_amount_of_devices_that_ray_refuses_is_a_mistake(tmp_path: Path, name: str, amount: float) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{JOB}axes: {{heads: [1, 2]}}\nresources: {{custom: {{{name}: {amount}}}}}\n")

    def is_refused() -> bool:
        try:
            Sweep.load(path)
        except UserError:
            return True
        return False

    try:
        ray.remote(resources={name: amount})(type("Worker", (), {}))
    except ValueError:
        assert is_refused()
    else:  # of more than one device, a raylet gives whole ones only
        assert is_refused() == (name in DEVICES and amount == 1.5)


def test_a_value_that_cannot_be_read_is_one_mistake(tmp_path: Path) -> None:
    found = mistakes(tmp_path, JOB + "fixed: {steps: ${STEPS}}\nseed: ${SEED}\n")
    assert [text.splitlines()[0] for text in found] == [
        "2:16: the environment variable STEPS is not set",
        "3:7: the environment variable SEED is not set",
    ]


def test_a_value_from_the_environment_is_checked_as_any_other(tmp_path: Path) -> None:
    assert mistakes(tmp_path, JOB + "fixed: {steps: ${STEPS}}\n", STEPS="0")[0].startswith("2:16: 'steps' must be")


def test_a_mistake_shows_what_is_known_of_it_and_no_more() -> None:
    assert Mistake(rule="no").text == "no"
    full = Mistake(rule="no", place="f:1:2", value=[True, None], choices=(1, 2), next_step="go")
    assert full.text == "f:1:2: no\n  value: [True, None]\n  valid: 1, 2\n  next:  go"
    assert len(Mistake(rule="no", value="x" * 10_000).text) < 300
    assert UserError.of([full, Mistake(rule="no")]).text == full.text + "\nno"
    assert str(UserError("no", value=None)) == "no\n  value: null"


def test_the_nearest_name_is_like_it_or_there_is_none() -> None:
    assert nearest("Weigth_Decay", ["data", "weight_decay"]) == "weight_decay"
    assert nearest("colour", ["data", "weight_decay"]) is None
