"""The report of a sweep: what it says, and that a browser shows it at any size without a network."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from browsing import PAGE_TEXTS, overlaps
from runner_kit import RAMP
from servers import empty_sqlite

from orchestrator.cli import main
from orchestrator.phases.draw.png import figure
from orchestrator.phases.style import FigureStyle, drawn_as
from orchestrator.report import page as report_page
from orchestrator.report.content import Failure, Picture, Report, Table, cost_of, shortened, tables_of
from orchestrator.report.page import page as rendered
from orchestrator.report.page import write_report

SWEEP = {
    "name": "ramps <b>&amp;",
    "job": RAMP,
    "axes": {"width": [1, 2, 3], "trouble": ["none", "raise"]},
    "replicates": 2,
    "output": "out",
    "tracking": {"uri": "sqlite:///mlflow.db"},
}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
    "789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)


def test_everything_that_a_user_wrote_is_text_in_the_page() -> None:
    evil = "<script>alert(1)</script>"
    report = Report(
        name=evil,
        state=(("finished", "1"),),
        asked=((evil, evil),),
        phases=((evil, 1, "#000000"),),
        found=(evil,),
        warnings=(evil,),
        tables=(Table(name="a", title=evil, level=0.9, columns=(evil,), rows=((evil,),), notes=(evil,)),),
        failures=(Failure(count=1, first=evil, text=evil),),
        sweep_file=evil,
    )
    text = rendered(report)
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 11


def test_figures_beyond_the_limit_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for name in ("first.png", "second one.png"):
        (tmp_path / name).write_bytes(PNG)
        pictures.append(Picture(file=tmp_path / name, caption=f"figure {name}"))
    monkeypatch.setattr(report_page, "EMBEDDED_BYTES", 150)
    text = write_report(Report(name="x", state=(), asked=(), pictures=tuple(pictures)), tmp_path / "r.html").read_text()
    assert text.count("data:image/png;base64,") == 1
    assert 'href="second%20one.png"' in text and "figure second one.png" in text


@pytest.mark.parametrize(("width", "inches"), [("single", "3.50"), ("double", "7.20")])
def test_a_figure_of_a_page_is_shown_in_its_own_width(tmp_path: Path, width: str, inches: str) -> None:
    file = tmp_path / "figure.png"
    with drawn_as(FigureStyle.model_validate({"width": width})), figure(file, "", "", (4, 3)):
        pass
    report = Report(name="x", state=(), asked=(), pictures=(Picture(file=file, caption="map"),))
    assert f'alt="map" style="width: {inches}in"' in rendered(report)


def test_the_next_step_of_a_warning_is_a_line_of_its_own() -> None:
    text = rendered(Report(name="x", state=(), asked=(), warnings=("lost\n  next:  look",)))
    assert "Warning: lost\n  next:  look</p>" in text
    assert re.search(r"\.warning \{[^}]*white-space: pre-line", text)


def test_results_of_analyses_are_read_with_their_intervals(tmp_path: Path) -> None:
    estimate = {"value": 47.0, "low": 40.5, "high": "inf"}
    rows = [{"noise": 0.15, "place": estimate, "other": 1, "peak": "yes"}, {"noise": 0.0, "place": None, "peak": None}]
    result = {"name": "peak", "title": "t", "level": 0.9, "notes": ["n"], "columns": ["noise", "place"], "rows": rows}
    (tmp_path / "a.json").write_text(json.dumps({"analyses": [result]}))
    (table,) = tables_of(tmp_path / "a.json")
    assert table.columns == ("noise", "place")
    assert table.rows == (("0.15", "47 [40.5, ∞]"), ("0", "–"))
    assert tables_of(tmp_path / "absent.json") == ()


def test_a_damaged_summary_costs_nothing(tmp_path: Path) -> None:
    assert cost_of(tmp_path / "run.json") == ()
    (tmp_path / "run.json").write_text('{"done": 3}')
    assert cost_of(tmp_path / "run.json") == ()


def test_long_tracebacks_end_with_their_last_lines() -> None:
    text = shortened("\n".join(f"line {n}" for n in range(100)))
    assert text.startswith("[... 60 lines ...]\nline 60") and text.endswith("line 99")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep, half of whose trials fail."""
    folder = tmp_path_factory.mktemp("report")
    empty_sqlite(folder / "mlflow.db")
    (folder / "sweep.yaml").write_text(json.dumps(SWEEP))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "sweep.yaml", "--inline", "--quiet"]) == 1
    return folder


def test_a_run_leaves_a_report(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run)
    text = (run / "out" / "report.html").read_text()
    assert "6 finished, 6 failed" in text or "6 failed, 6 finished" in text
    assert "phasefront run sweep.yaml" in text and "1, 2, 3" in text
    assert "6 with this error; one of them: " in text and "Traceback" in text
    assert text.count("data:image/png;base64,") >= 1 and "last run" in text
    targets = {target for target in re.findall('href="([^"]*)"', text) if not target.startswith("#")}
    pages = {target for target in targets if target.startswith("http://127.0.0.1:5000/#/experiments/")}
    assert len(pages) == 2 and all((run / "out" / target).is_file() for target in targets - pages)
    assert main(["report", "sweep.yaml"]) == 0
    assert capfd.readouterr().out == "out/report.html\n"
    assert text.replace(" --inline --quiet", "") == (run / "out" / "report.html").read_text()
    stored = [path for path in run.rglob("report.html") if "artifacts" in path.parts]
    assert stored and all(path.read_text().startswith("<!DOCTYPE html>") for path in stored)


def test_a_report_of_nothing_names_the_command_that_makes_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    empty_sqlite(tmp_path / "mlflow.db")
    Path("sweep.yaml").write_text(json.dumps(SWEEP))
    assert main(["report", "sweep.yaml"]) == 2
    said = capfd.readouterr().err
    assert "nothing is recorded of this sweep yet" in said and "phasefront run sweep.yaml" in said


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = needs.program("chromium", "chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it(browser: Any, run: Path, width: int, scheme: str) -> None:
    said: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    page.goto((run / "out" / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert overlaps(page, PAGE_TEXTS, least=20) == []
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light") and abs(brightness[0] - brightness[1]) > 400
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "What was asked"
    page.keyboard.press("Enter")
    page.wait_for_url("**/report.html#asked")
    page.close()
    assert said == []
