"""Pictures whose factors are known: a drawing on a background of a known colour, at a known size and place.

world = World()
factors = sample_factors(64, generator=torch.Generator().manual_seed(0))
images = world.paint(rows, factors)  # (64, 3, 64, 64) in [-1, 1]
caption("rocket", colour=4, size=0)  # "small rocket on green"
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import WORK

from dtviz.metrics.factors import CELL, COLOURS, SHARES, SIDE, SIZES

RENDERED = 96  # pixels of a drawing as it is kept
# Of each background: hue in degrees, saturation, value, and how far each varies
TINT = (0.39, 0.95, 8, 0.11, 0.05)
HSV = {"white": (0, 0.01, 0.99, 0, 0.01, 0.01), "grey": (0, 0.02, 0.76, 0, 0.02, 0.06)}
HSV |= {name: (hue, *TINT) for name, hue in zip(list(COLOURS)[1:8], (0, 28, 52, 125, 210, 272, 330), strict=True)}


def caption(concept: str, colour: int = -1, size: int = -1) -> str:
    """Return "small dog face on blue". What is -1 is not mentioned."""
    name = concept.replace("-", " ")
    return ([*SIZES][size] + " " if size >= 0 else "") + name + (f" on {[*COLOURS][colour]}" if colour >= 0 else "")


def sample_factors(n: int, *, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return `n` random factors, (n,) indices into `FACTORS`, and `rgb` (n, 3), each background's own colour."""
    factors = {
        name: torch.multinomial(torch.from_numpy(shares), n, replacement=True, generator=generator)
        for name, shares in SHARES.items()
    }
    settings = torch.tensor([HSV[name] for name in COLOURS])[factors["colour"]]
    hue, saturation, value = (settings[:, :3] + settings[:, 3:] * (2 * torch.rand(n, 3, generator=generator) - 1)).T
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None] / 60) % 6
    rgb = value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))
    return factors | {"rgb": rgb}


class World:
    """The drawings with transparency: `rgba` (n, 4, 96, 96) uint8, premultiplied, `concept`, `artist`, `held_out`."""

    def __init__(self, name: str = "rgba") -> None:
        with np.load(WORK / f"{name}.npz") as data:
            self.concept, self.artist, self.held_out = data["concept"], data["artist"], data["held_out"]
            self.rgba = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)

    def paint(self, rows: torch.Tensor, factors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return pictures (n, 3, 64, 64) in [-1, 1] of these drawings with these factors."""
        scale = torch.tensor([*SIZES.values()])[factors["size"]]
        place = torch.stack([factors["place"] % 3 - 1, factors["place"] // 3 - 1], dim=1)
        theta = torch.zeros(len(rows), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        theta[:, :, 2] = -2 * CELL / SIDE * place / scale[:, None]
        grid = F.affine_grid(theta, [len(rows), 4, 2 * SIDE, 2 * SIDE], align_corners=False)
        rgba = F.avg_pool2d(F.grid_sample(self.rgba[rows].float() / 255, grid, align_corners=False), 2)
        return 2 * (rgba[:, :3] + (1 - rgba[:, 3:]) * factors["rgb"][:, :, None, None]) - 1
