"""The real drawings that the embedded models were trained on: the known modes of every prompt.

real = drawings.load()
real.of("dog face").artists     # ("noto", "noto-v1", ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from PIL import Image

from ..files import data, reading

SIZE = 64


@dataclass(frozen=True)
class Drawings:
    """Drawings: `images` (n, 3, 64, 64) float32 in [0, 1], and the prompt and artist of each."""

    images: np.ndarray
    prompts: tuple[str, ...]
    artists: tuple[str, ...]

    def of(self, prompt: str) -> Drawings:
        """Return this prompt's drawings. Raise ValueError if there are none."""
        rows = [row for row, name in enumerate(self.prompts) if name == prompt]
        if not rows:
            raise ValueError(f"prompt={prompt!r} is none of the {len(set(self.prompts))} prompts that were drawn")
        return Drawings(self.images[rows], (prompt,) * len(rows), tuple(self.artists[row] for row in rows))


@cache
def load() -> Drawings:
    """Load all drawings of `data/drawings` or `$DTVIZ_DRAWINGS`. Raise ValueError if they are damaged."""
    folder = data("drawings")
    with reading(f"{folder / 'drawings.csv'} or its .png"):
        index = pd.read_csv(folder / "drawings.csv")
        with Image.open(folder / "drawings.png") as sheet:
            pixels = np.asarray(sheet.convert("RGB"), dtype=np.float32) / 255
        tiles = [pixels[y : y + SIZE, x : x + SIZE] for y, x in SIZE * index[["row", "column"]].to_numpy()]
        prompts = tuple(name.replace("-", " ") for name in index["concept"])
        return Drawings(np.stack(tiles).transpose(0, 3, 1, 2), prompts, tuple(index["artist"]))
