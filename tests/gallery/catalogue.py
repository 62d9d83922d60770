"""All rows."""

from tests.gallery import benign, generations, hull

ROWS = (benign.ROW, generations.ROW, hull.ROW)
