"""All rows."""

from tests.gallery import benign, depth, fold_back, generations, hull, parity, random_labels, strings

ROWS = (random_labels.ROW, fold_back.ROW, benign.ROW, strings.ROW, depth.ROW, hull.ROW, parity.ROW, generations.ROW)
