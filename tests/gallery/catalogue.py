"""All rows."""

from tests.gallery import benign, fold_back, generations, hull, parity, random_labels

ROWS = (random_labels.ROW, fold_back.ROW, benign.ROW, hull.ROW, parity.ROW, generations.ROW)
