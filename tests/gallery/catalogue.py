"""All rows."""

from tests.gallery import (
    attention,
    benign,
    depth,
    fold_back,
    generations,
    hull,
    model_wise,
    parity,
    progress,
    pruning,
    random_labels,
    scaling,
    strings,
)

ROWS = (
    random_labels.ROW,
    fold_back.ROW,
    benign.ROW,
    model_wise.ROW,
    strings.ROW,
    scaling.ROW,
    depth.ROW,
    hull.ROW,
    pruning.ROW,
    parity.ROW,
    attention.ROW,
    generations.ROW,
    progress.ROW,
)
