"""All rows."""

from tests.gallery import attention, benign, depth, fold_back, generations, hull, parity, random_labels, strings

ROWS = (
    random_labels.ROW,
    fold_back.ROW,
    benign.ROW,
    strings.ROW,
    depth.ROW,
    hull.ROW,
    parity.ROW,
    attention.ROW,
    generations.ROW,
)
