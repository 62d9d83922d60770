"""Figures for a paper: format, width, names, colours and panels, in every kind of figure."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from jobs_for_phases import Melt, MeltParams, axis, by_id, product, row
from matplotlib.figure import Figure
from matplotlib.text import Text
from recorded_sweeps import recorded_folder

import phasefront
from jobs.job import Curves, specs
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.live.content import curves_of, state_of
from orchestrator.phases.compare import compare
from orchestrator.phases.diagram import phase_diagram
from orchestrator.phases.draw.html_traces import hover_texts
from orchestrator.phases.draw.png import legend_columns, sheet
from orchestrator.phases.draw.png_compare import draw_comparison
from orchestrator.phases.draw.png_lines import draw_curves
from orchestrator.phases.draw.png_map import draw_map
from orchestrator.phases.draw.png_steps import draw_step_map
from orchestrator.phases.interactive import Interactive
from orchestrator.phases.layout import lay_out
from orchestrator.phases.steps import read_step_map
from orchestrator.phases.style import FigureStyle, drawn_as, formula_error
from orchestrator.phases.table import collect
from orchestrator.phases.text import on_page, plain
from orchestrator.sweep.sweep import Sweep
from tests.test_compare import a_side
from tests.test_phases_plots import varied

FIGURE = r"""
figure:
  width: single
  labels: {weight_decay: 'weight decay $\lambda$', data_fraction: 'data fraction', grokking: late}
  colours: {grokking: '#123456'}
  decimal: comma
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = recorded_folder(tmp_path_factory.mktemp("figures"))
    (folder / "styled.yaml").write_text((folder / "grid.yaml").read_text() + FIGURE)
    return folder


@pytest.fixture(autouse=True)
def _beside_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def page_mm(pdf: bytes) -> float:
    found = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", pdf)
    assert found
    return float(found[1]) / 72 * 25.4


def test_the_suffix_decides_and_the_figure_has_the_width_names_and_colours(folder: Path) -> None:
    for suffix in ("pdf", "svg", "html"):
        assert main(["map", "styled.yaml", "-o", f"out/fig.{suffix}"]) == 0
    pdf = Path("out/fig.pdf").read_bytes()
    assert page_mm(pdf) == pytest.approx(89, abs=0.1)
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf, "TrueType fonts are embedded"
    svg = Path("out/fig.svg").read_text()
    assert ">data fraction</text>" in svg and ">late</text>" in svg, "text is text"
    assert ">0,55</text>" in svg and ">0.55</text>" not in svg
    assert re.search(r">\s*λ\s*<", svg) and r"\lambda" not in re.sub("<!--.*?-->", "", svg)
    page = Path("out/fig.html").read_text()
    assert r"weight decay \u03bb" in page and "#123456" in page and "late" in page
    assert "grid" in page and not list(Path("out").glob(".*"))


def test_a_figure_in_another_format_is_not_lost_when_the_map_is_drawn_again() -> None:
    out = Path(Sweep.load("grid.yaml").output)
    assert main(["map", "grid.yaml", "--figures", "svg,pdf"]) == 0
    figures = {path.name for path in out.glob("phase_diagram*") if path.suffix in (".svg", ".pdf")}
    (out / "phase_diagram.svg").write_text("old")
    assert main(["map", "grid.yaml"]) == 0
    assert figures == {path.name for path in out.glob("phase_diagram*") if path.suffix in (".svg", ".pdf")} != set()
    assert (out / "phase_diagram.svg").read_text() != "old"


def test_a_grid_is_two_columns_wide_unless_the_file_says_otherwise() -> None:
    assert main(["map", "grid.yaml", "-o", "plain.pdf"]) == 0
    assert page_mm(Path("plain.pdf").read_bytes()) == pytest.approx(183, abs=0.1)
    assert main(["map", "grid.yaml", "-o", "plain.pdf", "--width", "120"]) == 0
    assert page_mm(Path("plain.pdf").read_bytes()) == pytest.approx(120, abs=0.1)
    assert main(["compare", "styled.yaml", "grid.yaml", "-o", "both.svg"]) == 0
    assert "#123456" in Path("both.svg").read_text()


def test_the_width_of_a_file_that_is_named_is_not_that_of_the_folder() -> None:
    out = Path(Sweep.load("grid.yaml").output)
    law = "analysis: [{kind: law, of: generalisation_step, along: data_fraction, form: power}]\n"
    Path("wide.yaml").write_text(Path("grid.yaml").read_text() + law)
    step = ["--step", "test_accuracy"]
    for command in (["map", "grid.yaml"], ["map", "grid.yaml", *step], ["analyse", "wide.yaml"]):
        assert main(command) == 0
        before = {path.name: path.read_bytes() for path in out.glob("*.png")}
        assert main([*command, "-o", "named.pdf", "--width", "single"]) == 0
        assert page_mm(Path("named.pdf").read_bytes()) == pytest.approx(89, abs=0.1)
        assert before == {path.name: path.read_bytes() for path in out.glob("*.png")} != {}
    assert main(["map", "grid.yaml", "--width", "single"]) == 0
    assert (out / "phase_diagram.png").read_bytes() != before["phase_diagram.png"], "without -o"


def test_figures_of_a_comparison_are_set_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--set", "figure.width=single", "--set", "figure.colours.grokking='#654321'"]
    assert main(["compare", "grid.yaml", "styled.yaml", "-o", "set.pdf", "--figures", "svg", *more]) == 0
    assert page_mm(Path("set.pdf").read_bytes()) == pytest.approx(89, abs=0.1)
    assert "#654321" in Path("set.svg").read_text()
    for given, override, said in (
        ("grid.yaml", "figure.width=triple", "must be single"),
        ("grid.yaml", "replicates=3", "only `figure:` can be changed here"),
        ("grid", "figure.width=single", "none is compared"),
    ):
        assert main(["compare", given, given, "-o", "set.pdf", "--set", override]) == 2
        assert said in capsys.readouterr().err


def test_analyses_are_drawn_for_a_page_each_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    of = "{kind: law, of: generalisation_step, along: data_fraction, form: power"
    Path("laws.yaml").write_text(
        Path("styled.yaml").read_text() + f"analysis: [{of}, name: one}}, {of}, name: two}}]\n"
    )
    assert main(["analyse", "laws.yaml", "-o", "laws.pdf"]) == 0
    made = sorted(path.name for path in Path().glob("laws*.pdf"))
    assert made == ["laws_one.pdf", "laws_two.pdf"], capsys.readouterr().out
    Path("parts.yaml").write_text(Path("styled.yaml").read_text() + f"analysis: [{of}}}]\n")
    assert main(["analyse", "parts.yaml", "-o", "parts.svg"]) == 0
    assert re.search(r">\s*λ\s*<", Path("parts.svg").read_text()), "the titles of its panels"
    assert page_mm(Path("laws_one.pdf").read_bytes()) == pytest.approx(89, abs=0.1)


def test_the_figure_is_no_part_of_the_trials_nor_of_the_sweep_and_is_kept_with_the_record(tmp_path: Path) -> None:
    plain, styled = Sweep.load("grid.yaml"), Sweep.load("styled.yaml")
    assert styled.id == plain.id and [t.id for t in styled.trials()] == [t.id for t in plain.trials()]
    assert styled.thresholds_fingerprint() == plain.thresholds_fingerprint()
    assert "figure" not in plain.resolved_yaml()
    path = tmp_path / "again.yaml"
    path.write_text(styled.resolved_yaml())
    assert Sweep.load(path).figure == styled.figure != FigureStyle()


def assert_legible(figure: Figure) -> None:
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = {id(t): t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()}.values()
    boxes = [(t.get_text(), t.get_tightbbox(renderer)) for t in texts]
    assert len(boxes) > 8
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
        for other, second in boxes[:i]:
            overlap = min(box.x1, second.x1) - max(box.x0, second.x0), min(box.y1, second.y1) - max(box.y0, second.y0)
            assert min(overlap) <= 1, (text, other)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("width", ["single", "double", 140])
@pytest.mark.parametrize("draw", ["map", "lines"])
def test_texts_of_a_page_do_not_overlap_and_can_be_read(draw: str, width: object, count: int) -> None:
    axes = [axis("width", 2, 3, 5, 9, 16, 40, 300, scale="integer"), axis("load", *np.linspace(0, 1, count).tolist())]
    trials = product(axes, replicates=2)
    diagram = phase_diagram("melting", axes, Melt.phases, collect(trials, varied(trials)), specs(MeltParams))
    kept: list[Figure] = []
    with drawn_as(FigureStyle.model_validate({"width": width, "labels": {"width": "$N$"}}), diagram.labels):
        if draw == "map":
            draw_map(diagram, lay_out(diagram), Melt.headline, kept.append)
        else:
            draw_curves(diagram, lay_out(diagram), Melt.headline, {"peak_width": 16.0}, kept.append)
    assert_legible(kept[0])
    assert min(t.get_fontsize() for t in kept[0].findobj(Text) if t.get_text().strip()) >= 6.5
    legends = [legend for ax in kept[0].axes if (legend := ax.get_legend()) is not None and ax.lines]
    assert not legends, "a legend covers no curve"


@pytest.mark.parametrize("panels", [["phase", "melting_step", "final_error"], ["final_error", "melting_step"]])
@pytest.mark.parametrize("width", ["single", "double", 110])
@pytest.mark.parametrize("low", [1e-5, 0.1])
def test_ticks_of_narrow_colour_bars_do_not_overlap(low: float, width: object, panels: list[str]) -> None:
    axes = [axis("width", 2, 3, 5, 9), axis("load", 0.2, 0.4, 0.6)]
    trials = product(axes, replicates=1)
    seen = {"melting_step": [low * 3.0**i for i in range(12)], "final_error": [low * (10 + i) for i in range(12)]}
    rows = [row(t, "solid", **{name: values[i] for name, values in seen.items()}) for i, t in enumerate(trials)]
    diagram = phase_diagram("melting", axes, Melt.phases, collect(trials, by_id(*rows)), specs(MeltParams))
    kept: list[Figure] = []
    with drawn_as(FigureStyle.model_validate({"width": width, "panels": panels}), diagram.labels):
        draw_map(diagram, lay_out(diagram), Melt.headline, kept.append)
    figure = kept[0]
    figure.draw_without_rendering()
    bars = [inset for ax in figure.axes for inset in ax.child_axes]
    assert len(bars) == 2
    for bar in bars:
        boxes = [text.get_tightbbox(figure.canvas.get_renderer()) for text in bar.get_xticklabels()]  # type: ignore[attr-defined]
        assert len(boxes) >= 2
        assert all(one.x1 + 1 <= other.x0 for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("draw", ["map", "lines"])
def test_titles_of_panels_have_the_names_of_the_style(draw: str) -> None:
    axes = [axis("width", 2, 3, 5, 9), axis("load", 0.2, 0.4)]
    if draw == "map":
        axes.append(axis("heat", 1, 2, 3))
    trials = product(axes, replicates=1)
    diagram = phase_diagram("melting", axes, Melt.phases, collect(trials, varied(trials)), specs(MeltParams))
    kept: list[Figure] = []
    with drawn_as(FigureStyle(labels={"load": r"training fraction $\alpha$"}), diagram.labels):
        if draw == "map":
            draw_map(diagram, lay_out(diagram), Melt.headline, kept.append)
        else:
            draw_curves(diagram, lay_out(diagram), Melt.headline, {}, kept.append)
    titles = [title for ax in kept[0].axes if (title := ax.get_title(loc="left"))]
    assert titles == [r"training fraction $\alpha$ 0.2", r"training fraction $\alpha$ 0.4"]


def test_the_page_of_a_run_has_the_names_of_the_style() -> None:
    shown = state_of(
        name="x", counts={}, most=1, known=1, phases=Counter(late=1), colours={"late": "#000000"}, lines=(),
        called={"late": plain(r"above $\alpha_{c}$")}, failures=(), failed=0, driven=False, map_version="", mlflow={},
    )  # fmt: skip
    assert [phase["label"] for phase in shown["phases"]] == ["above αc"]


@pytest.mark.parametrize(
    ("classifier", "entry"), [(False, "boundary (equal shares)"), (True, "boundary (equal belief)")]
)
def test_the_legend_of_a_map_names_its_boundary(classifier: bool, entry: str) -> None:
    figure = phasefront.load("grid.yaml").map(classifier=classifier).figure()
    named = [text.get_text() for legend in (*figure.legends, *(ax.get_legend() for ax in figure.axes)) if legend
             for text in legend.get_texts()]  # fmt: skip
    assert entry in named


def test_the_report_calls_the_phases_as_the_style_does() -> None:
    assert main(["run", "styled.yaml", "--inline", "--quiet"]) == 0
    report = Path("grid/report.html").read_text()
    table = report[report.index("finished trials</th>") :].partition("</table>")[0]
    assert "late" in table and "#123456" in table and "grokking" not in table


def test_slices_and_texts_of_the_page_have_the_names_of_the_style() -> None:
    axes = [axis("width", 2, 3, 5, 9), axis("load", 0.2, 0.4), axis("heat", 1, 2, 3)]
    trials = product(axes, replicates=1)
    table = collect(trials, varied(trials))
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    picture = Interactive(page={}, summary="", table=table, cell=diagram.cell)
    curves = {trials[0].id: Curves(step=np.array([1]), values={"test_loss": np.array([1.0])})}
    names = {"load": r"$\alpha_c$", "solid": "frozen", "peak_width": "$w$", "test_loss": r"$\ell$"}
    with drawn_as(FigureStyle(labels=names)):
        texts = hover_texts(diagram, table, ["peak_width"])
        shown = curves_of(picture, int(diagram.cell[table.phase.index("solid")]), curves)
    assert all(r"<b>α<sub>c</sub></b> 0." in text and "$" not in text for text in texts)
    assert any("1 × frozen" in text for text in texts) and not any("solid" in text for text in texts)
    assert [trial["phase"] for trial in shown["trials"]] == ["frozen"]
    assert [group["title"] for group in shown["groups"]] == ["ell"]


def test_panels_choose_what_is_drawn() -> None:
    sweep = phasefront.load("styled.yaml")
    made = phasefront.load("grid.yaml").map()

    def titles(**style: object) -> list[str]:
        return [t for ax in made.figure(**style).axes if (t := ax.get_title(loc="left"))]

    assert titles(width="single") == []
    assert titles() == ["phase", "generalisation step", "final test accuracy"]
    assert titles(panels=["phase", "memorisation_step"]) == ["phase", "memorisation step"]
    assert titles(panels=["memorisation_step"], labels={"memorisation_step": "$t_1$"}) == ["$t_1$"]
    assert_legible(made.figure(panels=["phase", "memorisation_step"], width="single"))
    assert_legible(sweep.map(classifier=True).figure())


def test_a_map_is_drawn_into_axes_of_ones_own() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    sweep = phasefront.load("grid.yaml")
    assert sweep.plot(left, labels={"weight_decay": r"$\lambda$"}, colours={"grokking": "#123456"}) is left
    assert sweep.map(classifier=True).plot(right, legend=False) is right
    assert left.get_xlabel() == r"$\lambda$" and right.get_xlabel() == "weight decay"
    assert left.get_legend() is not None and right.get_legend() is None
    assert right.images and left.collections
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in left.get_xticklabels()]
    assert len(boxes) > 1 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    with pytest.raises(UserError, match="must be a whole number from 0 to 0"):
        sweep.plot(left, part=1)
    with pytest.raises(UserError, match="did you mean 'colours'"):
        sweep.plot(left, colors={"grokking": "#123456"})
    with pytest.raises(UserError, match="'width' must be single"):
        sweep.map().figure(width="triple")


def test_a_legend_stays_in_its_panel() -> None:
    short = ["memorization", "grokking", "confusion", "boundary (equal shares)", "replicates disagree (split cell)"]
    assert legend_columns(short, 4.4, 2) == 2
    assert legend_columns(["test accuracy at or above 0.9"] * 2 + short[-2:], 4.4, 2) == 1
    assert legend_columns([], 4.4, 2) == 1


def test_formulas() -> None:
    assert formula_error(r"weight decay $\lambda$") is None
    assert "lamda" in str(formula_error(r"$\lamda$"))
    assert on_page(r"loss $\alpha_{c}^2$ and $\Lambda$") == "loss α<sub>c</sub><sup>2</sup> and Λ"


def test_a_run_draws_again_where_only_the_style_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "grid.yaml", "--inline", "--quiet"]) == 0
    assert main(["run", "grid.yaml", "--inline", "--quiet"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["run", "styled.yaml", "--inline", "--quiet"]) == 0
    assert "nothing to do" not in capsys.readouterr().out


def test_the_phases_of_a_function_are_called_by_metric_and_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("falls.py").write_text("def train(params, seed, device, report):\n    report(1, loss=params['rate'])\n")
    text = "job: falls:train\naxes: {rate: [0.1, 0.2, 0.4]}\nphases: {metric: final_loss, level: 0.15}\n"
    Path("sweep.yaml").write_text(text)
    assert Sweep.load("sweep.yaml").figure.labels == {
        "below": "loss below 0.15",
        "at or above": "loss at or above 0.15",
    }
    Path("sweep.yaml").write_text(text + "figure: {labels: {below: learnt}}\n")
    assert Sweep.load("sweep.yaml").figure.labels["below"] == "learnt"
    assert "loss below" not in Sweep.load("sweep.yaml").resolved_yaml()


@pytest.mark.parametrize("width", ["single", "double"])
def test_a_comparison_on_a_page_is_legible(width: str) -> None:
    sides = [a_side(-0.1, name="one"), a_side(0.1, name="two")]
    kept: list[Figure] = []
    with drawn_as(FigureStyle.model_validate({"width": width})):
        draw_comparison(compare(*sides), kept.append)
    assert_legible(kept[0])
    panels = [ax for ax in kept[0].axes if ax.images]
    assert len({round(ax.get_position().x0, 2) for ax in panels}) == (1 if width == "single" else 3)


@pytest.mark.parametrize("draw", ["map", "step map", "lines", "compare"])
def test_long_titles_and_labels_of_a_narrow_figure_are_broken_into_lines(draw: str) -> None:
    long = "final accuracy on the held out distribution of tasks"
    axes = [axis("heat", 0.1, 1.0, 10.0, scale="log"), axis("load", 0.2, 0.4)]
    trials = product(axes, replicates=2)
    rows = [row(t, "solid", melting_step=3.0 + i, final_error=0.1 + 0.01 * i) for i, t in enumerate(trials)]
    table = collect(trials, by_id(*rows))
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    names = dict.fromkeys(("final_error", "melted"), long) | {"load": "fraction of the data used for training $a b$"}
    panels = ["final_error", "melting_step"] if draw == "map" else []
    kept: list[Figure] = []
    with drawn_as(FigureStyle.model_validate({"width": 89, "labels": names, "panels": panels}), diagram.labels):
        if draw == "map":
            draw_map(diagram, lay_out(diagram), Melt.headline, kept.append)
        elif draw == "lines":
            draw_curves(diagram, lay_out(diagram), ["final_error"], {"melting_heat": 1.0}, kept.append)
        elif draw == "step map":
            curve = Curves(step=np.array([1, 10, 100, 1000]), values={"melted": np.array([0.1, 0.4, 0.3, 0.9])})
            made = read_step_map(diagram, table, ("melted",), lambda ids: ((i, curve) for i in ids), x=0)
            draw_step_map(made, made.maps[0], kept.append)
        else:
            draw_comparison(compare(a_side(-0.1, name=long), a_side(0.1, name=f"{long}, again")), kept.append)
    (figure,) = kept
    assert_legible(figure)
    titles = [
        text.get_text()
        for text in figure.findobj(Text)
        if text.get_text() in {ax.get_title("left") for ax in figure.axes}
    ]
    assert any("\n" in title for title in titles)
    assert draw == "compare" or all("$a b$" in title for title in titles if "fraction" in title), "a formula is whole"


def test_a_long_line_below_the_name_is_wrapped_and_short_lines_stay() -> None:
    kept: list[Figure] = []
    summary = f"short\n\n{'a line that is longer than its figure, ' * 6}"
    with sheet(kept.append, "a sweep", summary, [6.0], [3.0, 0.5]):
        pass
    (figure,) = kept
    (text,) = (text for text in figure.texts if text.get_text().startswith("short"))
    box = text.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    assert box.x1 <= figure.bbox.x1
    assert text.get_text().startswith("short\n\na line") and len(text.get_text().split("\n")) >= 5
    assert text.get_text().replace("\n", " ") == summary.replace("\n", " "), "no word is lost"
