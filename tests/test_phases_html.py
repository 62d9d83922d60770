"""The interactive picture in a real browser, without a network."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from jobs_for_phases import GivenSweep, Melt, axis, by_id, product, row, trial

from jobs.job import Censored
from orchestrator.phases.publish import publish
from orchestrator.records import Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

pytestmark = pytest.mark.slow

HEAT = axis("heat", 0.0, 0.1, 1.0, 10.0, scale="log")
WIDTH = axis("width", *range(1, 9))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = needs.program("chromium", "chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test on any message of its console, error, or request to elsewhere."""
    said: list[str] = []
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request", lambda request: None if request.url[:5] in ("file:", "data:", "blob:") else said.append(request.url)
    )
    yield opened
    opened.close()
    assert said == []


def rows_of(trials: list[Trial]) -> dict[str, TrialRow]:
    made = []
    for i, t in enumerate(trials):
        if i % 13 == 3:
            continue
        if i % 13 == 4:
            made.append(row(t, None, Status.FAILED))
            continue
        step = Censored(500.0) if i % 5 == 0 else float(1 + i)
        made.append(row(t, Melt.phases[i % 3], melting_step=step, final_error=i / 10))
    return by_id(*made)


def show(page: Any, path: Path, view: str, where: str | None = None) -> list[dict[str, Any]]:
    """Choose a view (and a slice); the traces that plotly then holds."""
    if not page.url.endswith(path.name):
        page.goto(path.as_uri())
    page.wait_for_selector("#plot .main-svg")
    page.select_option("#view", label=view)
    if where is not None:
        page.select_option("#slice", label=where)
    page.wait_for_timeout(150)
    found: list[dict[str, Any]] = page.evaluate(
        "document.getElementById('plot').data.map(t => ({type: t.type, name: t.name, z: t.z && t.z.map(r => [...r]),"
        " x: t.x && [...t.x], y: t.y && [...t.y], text: t.text, width: t.width}))"
    )
    return found


def test_a_map_has_a_cell_and_a_text_for_each_setting(page: Any, tmp_path: Path) -> None:
    trials = product([HEAT, WIDTH], replicates=2)
    rows = rows_of(trials)
    path = publish(GivenSweep(axes=(HEAT, WIDTH)), trials, rows, tmp_path).files["phase_diagram.html"]
    (heat, *_) = (t for t in show(page, path, "phase") if t["type"] == "heatmap")
    cells = [cell for line in heat["z"] for cell in line]
    texts = [text for line in heat["text"] for text in line if text]
    labelled = {
        (t.params.heat, t.params.width)  # type: ignore[attr-defined]
        for t in trials
        if t.id in rows and rows[t.id].recorded.phase is not None
    }
    assert sum(cell is not None for cell in cells) == len(labelled)
    assert len(texts) == len(HEAT.values) * len(WIDTH.values)
    assert heat["z"][1] == [None] * len(WIDTH.values)  # the gap after the row of zero
    for t in trials:
        (text,) = [x for x in texts if f"heat</b> {t.params.heat:g}<" in x and f"width</b> {t.params.width}<" in x]  # type: ignore[attr-defined]
        if t.id in rows:
            assert rows[t.id].run_id in text
            assert (rows[t.id].recorded.phase or "failed") in text
        else:
            assert "missing" in text


def test_hovering_shows_the_text_of_the_cell_under_the_pointer(page: Any, tmp_path: Path) -> None:
    trials = product([HEAT, WIDTH])
    rows = by_id(*(row(t, "liquid", melting_step=Censored(500.0)) for t in trials))
    path = publish(GivenSweep(axes=(HEAT, WIDTH)), trials, rows, tmp_path).files["phase_diagram.html"]
    show(page, path, "melting step")
    box = page.locator("#plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + box["height"] * 0.01)
    page.wait_for_selector("#plot .hoverlayer .hovertext")
    told = page.locator("#plot .hoverlayer").text_content()
    assert "heat 10" in told
    assert "width 8" in told
    assert "median not reached" in told
    assert "500" in told


def test_values_that_were_not_reached_are_not_numbers_on_the_heat_map(page: Any, tmp_path: Path) -> None:
    trials = product([HEAT, WIDTH])
    path = publish(GivenSweep(axes=(HEAT, WIDTH)), trials, rows_of(trials), tmp_path).files["phase_diagram.html"]
    traces = show(page, path, "melting step")
    values, off = (t for t in traces if t["type"] == "heatmap")
    both = sum(
        a is not None and b is not None
        for one, other in zip(values["z"], off["z"], strict=True)
        for a, b in zip(one, other, strict=True)
    )
    seen = [r.recorded.observations.get("melting_step") for r in rows_of(trials).values()]
    assert both == 0
    assert sum(v is not None for line in off["z"] for v in line) == sum(isinstance(v, Censored) for v in seen)
    assert sum(v is not None for line in values["z"] for v in line) == sum(isinstance(v, float) for v in seen)
    assert "median not reached" in [t["name"] for t in traces]


def test_lines_have_a_point_per_value_and_a_bar_per_phase(page: Any, tmp_path: Path) -> None:
    axes = (axis("width", 2, 8, 30, 120, scale="integer"), axis("load", 0.0, 0.5))
    trials = product(axes, replicates=3)
    rows = by_id(*(row(t, "gas", melting_step=3.0, final_error=0.1 * t.replicate) for t in trials))
    path = publish(GivenSweep(axes=axes), trials, rows, tmp_path).files["phase_diagram.html"]
    traces = {t["name"]: t for t in show(page, path, "lines: final error", "load 0.5")}
    np.testing.assert_allclose(traces["final error"]["y"], [0.1] * 4)
    np.testing.assert_allclose(traces["final error"]["x"], np.log10([2, 8, 30, 120]))
    bars = traces["phase"]
    np.testing.assert_allclose(bars["x"][1:], np.add(bars["x"], bars["width"])[:-1])  # side by side, without gaps
    assert len(bars["x"]) == 4
    assert "melting: 2" in traces
    assert page.locator("#view option").all_inner_texts() == [
        "phase",
        "melting step",
        "final error",
        "lines: melting step",
        "lines: final error",
    ]


def test_the_range_goes_to_the_top_where_a_replicate_was_not_reached(page: Any, tmp_path: Path) -> None:
    axes = (axis("width", 2, 8, 30, scale="integer"),)
    trials = product(axes, replicates=3)
    steps = {2: [433, 811, Censored(1000)], 8: [Censored(1000)] * 3, 30: [100, 200, 300]}
    rows = by_id(*(row(t, "gas", melting_step=steps[t.params.width][t.replicate]) for t in trials))  # type: ignore[attr-defined]
    path = publish(GivenSweep(axes=axes), trials, rows, tmp_path).files["phase_diagram.html"]
    traces = {t["name"]: t for t in show(page, path, "lines: melting step")}
    band = traces["melting step: range, no upper end if not reached"]
    top = page.evaluate("document.getElementById('plot')._fullLayout.yaxis.range")[1]
    assert top > 1000
    np.testing.assert_allclose(band["y"], [433, 1000, 100, 300, top, top])
    assert "median 811 (from 433); 1 of 3 not reached within 1000" in traces["melting step"]["text"][0]


def test_the_chosen_slice_is_kept_when_the_view_changes(page: Any, tmp_path: Path) -> None:
    axes = (HEAT, WIDTH, axis("kind", "tin", "iron"))
    trials = product(axes)
    rows = by_id(*(row(t, "gas" if t.params.kind == "tin" else "solid", final_error=1.0) for t in trials))  # type: ignore[attr-defined]
    path = publish(GivenSweep(axes=axes), trials, rows, tmp_path).files["phase_diagram.html"]
    for where, label in (("kind tin", "gas"), ("kind iron", "solid")):
        (heat,) = (t for t in show(page, path, "phase", where) if t["type"] == "heatmap")
        assert {text.split("<br>")[3] for line in heat["text"] for text in line if text} == {f"1 × {label}"}
    show(page, path, "final error")
    assert page.locator("#slice option:checked").inner_text() == "kind iron"


def test_a_slider_moves_through_the_values_of_a_third_axis(page: Any, tmp_path: Path) -> None:
    loads = axis("load", 0.0, 0.5, 1.0)
    trials = product([HEAT, WIDTH, loads])
    rows = by_id(*(row(t, "gas", melting_step=3.0, final_error=t.params.load) for t in trials))  # type: ignore[attr-defined]
    path = publish(GivenSweep(axes=(HEAT, WIDTH, loads)), trials, rows, tmp_path).files["phase_diagram.html"]
    show(page, path, "final error")
    slider = page.locator("#sliders input")
    assert slider.count() == 1 and slider.get_attribute("name") == "load" and slider.get_attribute("max") == "2"
    for k, load in enumerate(loads.values):
        slider.fill(str(k))
        page.wait_for_timeout(150)
        z = page.evaluate("[...document.getElementById('plot').data[0].z.map(row => [...row])]")
        assert {value for line in z for value in line if value is not None} == {load}
        assert page.locator("#slice option:checked").inner_text() == f"load {load:g}"
        assert page.locator("#sliders output").inner_text() == f"{load:g}"
    page.select_option("#slice", label="load 0.5")
    assert slider.input_value() == "1", "the slider follows the menu"


def test_too_many_settings_for_a_page_are_joined_without_losing_trials(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.phases.publish.MOST_INTERACTIVE_CELLS", 100)
    drawn = np.random.default_rng(0).random((600, 2)).tolist()
    trials = [trial(heat=h, load=v) for h, v in drawn]
    axes = (axis("heat", 0.0, 1.0, scale="linear"), axis("load", 0.0, 1.0, scale="linear"))
    path = publish(GivenSweep(axes=axes), trials, by_id(*(row(t) for t in trials)), tmp_path).files[
        "phase_diagram.html"
    ]
    page.goto(path.as_uri())
    page.wait_for_selector("#plot .main-svg")
    traces = page.evaluate("document.getElementById('plot').data.map(t => t.text).filter(t => t)")
    texts = [text for text in np.array(traces[0], dtype=object).ravel() if text]
    counts = [int(found.group(1)) for text in texts if (found := re.search(r"(\d+) × solid", text))]
    assert len(counts) <= 100
    assert sum(counts) == 600


def test_names_are_escaped(page: Any, tmp_path: Path) -> None:
    evil = "</script><script>console.error('run')</script><b>"
    trials = product([HEAT, WIDTH])
    rows = by_id(*(row(t, evil, melting_step=1.0) for t in trials))
    sweep = GivenSweep(axes=(HEAT, WIDTH), name=evil)
    path = publish(sweep, trials, rows, tmp_path).files["phase_diagram.html"]
    show(page, path, "phase")
    assert page.locator("h1").inner_text() == evil
    assert page.title() == evil
    assert html.escape(evil) in path.read_text()


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    trials = product([HEAT, WIDTH])
    path = publish(GivenSweep(axes=(HEAT, WIDTH)), trials, {}, tmp_path).files["phase_diagram.html"]
    outside = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"'](?!data:)[^\"']*", path.read_text())
    assert outside == []
    assert path.stat().st_size > 1_000_000  # plotly itself is inside
