"""`make gallery`: runs the sweeps of every row, and prints what was expected and what was found; exit code 1 if a
verdict is not the one that docs/gallery.md reports."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import phasefront
from tests.gallery.catalogue import ROWS
from tests.gallery.processor import ProcessorTime
from tests.gallery.row import Finding, Point, Row
from tests.gallery.summary import table

CONFIGS = Path(__file__).parents[2] / "configs"


def results_of(row: Row, folder: Path, *, inline: bool = False, changes: Sequence[str] = ()) -> list[Any]:
    """The results of the row's sweeps, run as `phasefront run` does; what the folder has already is not run again."""
    results = []
    for name in row.sweeps:
        output = [f"output={folder / Path(name).stem}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
        search = "\nsearch:" in (CONFIGS / name).read_text("utf-8")
        if search:
            output.append(f"search.storage=sqlite:///{folder / 'optuna.db'}")
        overrides = [*output, *changes]
        alone = inline or search  # a search asks for the same trials again only where they end in the same order
        with contextlib.redirect_stdout(sys.stderr):
            run = phasefront.run(CONFIGS / name, overrides=overrides, inline=alone, progress=False, draw=False)
        results.append(run)
    return results


def line(finding: Finding) -> str:
    """A finding as a line of the table."""
    interval = f"{finding.found:.4g} [{finding.low:.4g}, {finding.high:.4g}], n = {finding.n}"
    return f"  {finding.what:<66} {finding.expected:>16}  {interval:<42} {finding.verdict}"


def draw(points: Sequence[Point], axes: tuple[str, str], scale: str, path: Path) -> None:
    """What was found, with its intervals, over the lines that were expected."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    for colour, series in enumerate(dict.fromkeys(p.series for p in points if p.series)):
        part = sorted((p for p in points if p.series == series), key=lambda p: p.x)
        x, y = [p.x for p in part], [p.found for p in part]
        bars = [[p.found - p.low for p in part], [p.high - p.found for p in part]]
        ax.errorbar(x, y, bars, fmt="o", ms=3, capsize=2, color=f"C{colour}", label=series)
        ax.plot(x, [p.curve for p in part], color=f"C{colour}", lw=1)
    ax.set(xscale="log", yscale=scale, xlabel=axes[0], ylabel=axes[1])
    places: list[float] = []
    at = sorted({point.x for point in points if point.series})
    apart = max(1.2, (at[-1] / at[0]) ** (1 / 9))
    for place in at:
        if not places or place > apart * places[-1]:  # labels would overlap
            places.append(place)
    ax.set_xticks(places, [f"{float(f'{place:.3g}'):g}" for place in places])
    ax.tick_params("x", which="minor", bottom=False, labelbottom=False)
    lines = "; lines: expected, or its limit" if any(math.isfinite(p.curve) for p in points if p.series) else ""
    ax.set_title(f"points: 95% interval{lines}", fontsize=8)
    ax.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run the rows; 0 if every verdict is the reported one, 1 if not, 2 if there is no such row."""
    parser = argparse.ArgumentParser(prog="python -m tests.gallery", description=__doc__)
    parser.add_argument(
        "-k", metavar="TEXT", default="", help="only the rows whose number is TEXT, or name contains it"
    )
    parser.add_argument("--folder", type=Path, help="keep results and pictures here (default: a temporary folder)")
    parser.add_argument("--inline", action="store_true", help="train in one process, without Ray")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if options.k in (str(row.number), "") or options.k.casefold() in row.name]
    if not rows:
        print(f"no row is called {options.k!r}; there are: {', '.join(r.name for r in ROWS)}", file=sys.stderr)
        return 2
    off: list[str] = []
    checked: list[tuple[Row, list[Finding]]] = []
    with tempfile.TemporaryDirectory() as scratch, ProcessorTime() as processor:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            print(f"{row.number}. {row.name} ({row.source})", flush=True)
            results = results_of(row, folder, inline=options.inline)
            findings = list(row.check(results))
            print("\n".join(map(line, findings)), flush=True)
            for note in row.notes(results) if row.notes else ():
                print(f"  {note}", flush=True)
            checked.append((row, findings))
            if any(finding.series for finding in findings):
                draw(findings, row.axes, row.scale, folder / f"{row.name.replace(' ', '_')}.png")
            for name, picture in (row.pictures or {}).items():
                draw(list(picture.points(results)), picture.axes, picture.scale, folder / f"{name}.png")
            off += [f"row {row.number}, {f.what}: {f.verdict} (found {f.found:.4g})" for f in row.off(findings)]
    print(f"{len(rows)} rows, {processor.seconds() / 60:.1f} minutes of processor time: ", end="")
    print("every verdict is the reported one" if not off else "NOT AS REPORTED:\n" + "\n".join(off))
    print("\n" + "\n".join(table(checked)))
    return 1 if off else 0


if __name__ == "__main__":
    raise SystemExit(main())
