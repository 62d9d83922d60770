"""All rows."""

from tests.gallery import benign, generations

ROWS = (benign.ROW, generations.ROW)
