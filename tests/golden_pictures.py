"""Compares pictures with golden ones, which are kept at an eighth of their size.

Text that is drawn by another version of freetype moves by a pixel or two; a colour, a wide line or a legend entry that
is missing changes a whole neighbourhood. So the pictures are compared after averaging over blocks of 8 x 8 pixels and
their neighbours.

`PHASEFRONT_GOLDEN=write pytest tests/test_golden_pictures.py` writes them anew: look at them, and at `git diff --stat`.
"""

import os
from pathlib import Path

import numpy as np
from matplotlib.image import imread, imsave
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "golden" / "pictures"
BLOCK = 8
MOST = 36.0
"""The largest difference of a neighbourhood's mean colour, of 255. Text without hints makes up to 22."""
MOST_MEAN = 0.6
"""The largest mean difference of a whole picture. Text without hints makes 0.3."""

Picture = NDArray[np.float64]


def reduced(path: Path) -> Picture:
    """(h, w, 3), from 0 to 255: means over blocks of BLOCK x BLOCK pixels."""
    pixels = np.asarray(imread(path), dtype=np.float64)[:, :, :3] * 255
    height, width = (size // BLOCK * BLOCK for size in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
    return np.asarray(blocks.mean(axis=(1, 3)))


def neighbourhoods(picture: Picture) -> Picture:
    """Means over 3 x 3 blocks."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = picture.shape[:2]
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.asarray(np.mean(shifted, axis=0))


def difference(picture: Picture, golden: Picture) -> tuple[float, float]:
    """The largest and the mean difference of neighbourhoods; both are infinite for pictures of other sizes."""
    if picture.shape != golden.shape:
        return np.inf, np.inf
    off = np.abs(neighbourhoods(picture) - neighbourhoods(golden))
    return float(off.max()), float(off.mean())


def check(name: str, path: Path) -> None:
    """Fail unless the picture is the golden one of this name, but for how text is drawn."""
    golden = FOLDER / f"{name}.png"
    picture = reduced(path)
    if os.environ.get("PHASEFRONT_GOLDEN") == "write":
        FOLDER.mkdir(parents=True, exist_ok=True)
        imsave(golden, picture.round().astype(np.uint8), metadata={"Software": None})
    kept = np.asarray(imread(golden), dtype=np.float64)[:, :, :3] * 255
    most, mean = difference(picture, kept)
    if most > MOST or mean > MOST_MEAN:
        where = (
            f"{path} differs from {golden} by {most:.1f} (most {MOST}) and in the mean {mean:.2f} (most {MOST_MEAN})"
        )
        raise AssertionError(f"{where}; sizes {picture.shape[:2]} and {kept.shape[:2]}, in blocks of {BLOCK} pixels")
