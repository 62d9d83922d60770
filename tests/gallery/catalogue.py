"""All rows."""

from tests.gallery import (
    attention,
    benign,
    chain,
    depth,
    fold_back,
    generations,
    hull,
    model_wise,
    parity,
    progress,
    pruning,
    quanta,
    random_labels,
    scaling,
    strings,
    white_box,
)

ROWS = (
    random_labels.ROW,
    fold_back.ROW,
    benign.ROW,
    model_wise.ROW,
    strings.ROW,
    scaling.ROW,
    quanta.ROW,
    depth.ROW,
    chain.ROW,
    white_box.ROW,
    hull.ROW,
    pruning.ROW,
    parity.ROW,
    attention.ROW,
    generations.ROW,
    progress.ROW,
)
