"""The table that ends `make gallery`: the main findings of each row, those of docs/gallery.md's first table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from tests.gallery.row import DOES_NOT, SHOWS, UNDECIDED, Finding, Row

MAIN: dict[int, tuple[str, ...]] = {
    1: ("noise 1: training error 0", "noise 1: test error is chance"),
    2: ("along effective parameters, *",),
    3: ("n 200, tail 4000",),
    4: ("along the step,*over memorisation", "along the embedding,*size that memorises"),
    5: ("digits, width 32: all 5 right",),
    6: ("a 2, t 0.5: in examples: exponent of these sizes*",),
    7: ("rank correlation of rarity and step", "exponent of the loss in steps / that of the sum of steps"),
    8: ("ball: loss of 2 layers / of 1",),
    9: ("steps, depth 1, 16 bits: decoded freely", "answer, depth 1, 16 bits: near chance"),
    10: ("coding rate: layer *", "non-zeros: layer *", "non-zeros: last / first layer, trained / untrained"),
    11: ("d 6: n of one half",),
    12: ("1450 parameters left: error of width 120 / of 20",),
    13: ("k 3: exponent of the step in n", "finite,*step of test / step of training*"),
    14: ("tau 0.5",),
    15: ("replace*generation 10", "accumulate, fresh*generation 10"),
    16: ("decay *: step, generalised above restricted", "decay *: step, memorised below circuit"),
}
"""Of each row, its claims: the findings whose names match; a claim shows if all of them do."""


def claims(row: Row, findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    """The claims of a row, and the findings of each."""
    return [(claim, [f for f in findings if fnmatchcase(f.what, claim)]) for claim in MAIN.get(row.number, ("*",))]


def verdict(findings: Sequence[Finding]) -> str:
    """Of a claim."""
    found = {f.verdict for f in findings}
    return next((v for v in (DOES_NOT, UNDECIDED) if v in found), SHOWS if found else DOES_NOT)


def of_row(row: Row, findings: Sequence[Finding]) -> str:
    """Of a row: whether all, some or none of its claims show."""
    shown = [verdict(part) == SHOWS for _, part in claims(row, findings)]
    return SHOWS if all(shown) else "in part" if any(shown) else DOES_NOT


def table(rows: Sequence[tuple[Row, Sequence[Finding]]]) -> Iterator[str]:
    """A line for each main finding, and the verdict of each row."""
    yield f"{'row':<34} {'verdict':<22} {'expected':>16}  found with its 95% interval"
    for row, findings in rows:
        yield f"{f'{row.number}. {row.name}':<34} {of_row(row, findings)}"
        for finding in (f for _, part in claims(row, findings) for f in part):
            found = f"{finding.found:.4g} [{finding.low:.4g}, {finding.high:.4g}], n = {finding.n}"
            yield f"{'':<34} {finding.verdict:<22} {finding.expected:>16}  {found:<42} {finding.what}"
