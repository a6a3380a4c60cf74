"""Pictures whose factors are known: a drawing on a background of a known colour, at a known size and place.

    world = World()
    factors = sample_factors(64, generator=torch.Generator().manual_seed(0))
    images = world.paint(rows, factors)  # (64, 3, 64, 64) in [-1, 1]
    caption("rocket", colour=4, large=0)  # "small rocket on green"

`python data/recipes/world.py` renders the drawings with their transparency into `work/rgba.npz`.
"""

import drawings
import numpy as np
import torch
import torch.nn.functional as F
from common import WORK, stage
from common import caption as name_of

RENDERED, SIDE = 96, 64  # pixels of a drawing as it is kept, and of a picture
# Of each background: hue in degrees, saturation, value, and how far each varies
COLOURS = {
    "white": (0, 0.01, 0.99, 0, 0.01, 0.01), "red": (0, 0.39, 0.95, 8, 0.11, 0.05), "orange": (28, 0.39, 0.95, 8, 0.11, 0.05),
    "yellow": (52, 0.39, 0.95, 8, 0.11, 0.05), "green": (125, 0.39, 0.95, 8, 0.11, 0.05),
    "blue": (210, 0.39, 0.95, 8, 0.11, 0.05), "purple": (272, 0.39, 0.95, 8, 0.11, 0.05),
    "pink": (330, 0.39, 0.95, 8, 0.11, 0.05), "grey": (0, 0.02, 0.76, 0, 0.02, 0.06),
}  # fmt: skip
SIZES = {"small": 0.5625, "big": 0.75}  # of the picture's side
CELL = 0.25  # distance of neighbouring places, one latent cell, where the picture runs from -1 to 1


def caption(concept: str, colour: int = -1, large: int = -1) -> str:
    """Return "small dog face on blue". What is -1 is not mentioned."""
    size = [*SIZES][large] + " " if large >= 0 else ""
    return size + name_of(concept) + (f" on {[*COLOURS][colour]}" if colour >= 0 else "")


def sample_factors(n: int, *, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return `n` random factors: `colour` (white twice as often), `rgb`, `large` (0 or 1), `place` (x, y in -1, 0, 1)."""
    weights = torch.ones(len(COLOURS))
    weights[0] = 2
    colour = torch.multinomial(weights, n, replacement=True, generator=generator)
    settings = torch.tensor([*COLOURS.values()], dtype=torch.float32)[colour]
    hue, saturation, value = (settings[:, :3] + settings[:, 3:] * (2 * torch.rand(n, 3, generator=generator) - 1)).T
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None] / 60) % 6
    rgb = value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))
    large = torch.randint(2, (n,), generator=generator)
    return {"colour": colour, "rgb": rgb, "large": large, "place": torch.randint(-1, 2, (n, 2), generator=generator)}


class World:
    """The drawings with transparency: `rgba` (n, 4, 96, 96) uint8, premultiplied, `concept`, `artist`, `held_out`."""

    def __init__(self) -> None:
        with np.load(WORK / "rgba.npz") as data:
            self.concept, self.artist, self.held_out = data["concept"], data["artist"], data["held_out"]
            self.rgba = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)

    def paint(self, rows: torch.Tensor, factors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return pictures (n, 3, 64, 64) in [-1, 1] of these drawings with these factors."""
        scale = torch.tensor([*SIZES.values()])[factors["large"]]
        theta = torch.zeros(len(rows), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        theta[:, :, 2] = -CELL * factors["place"] / scale[:, None]
        grid = F.affine_grid(theta, [len(rows), 4, 2 * SIDE, 2 * SIDE], align_corners=False)
        rgba = F.avg_pool2d(F.grid_sample(self.rgba[rows].float() / 255, grid, align_corners=False), 2)
        return 2 * (rgba[:, :3] + (1 - rgba[:, 3:]) * factors["rgb"][:, :, None, None]) - 1


def read_factors(images: np.ndarray) -> dict[str, np.ndarray]:
    """Read the factors of pictures (n, 3, 64, 64) in [0, 1]: `colour`, `rgb`, `large`, `place`, as `sample_factors` names them.

    The background is the border's median. What differs from it by more than .18 is the drawing, whose box gives the rest.
    """
    rim = [images[..., :2, :], images[..., -2:, :], images[..., :2].swapaxes(2, 3), images[..., -2:].swapaxes(2, 3)]
    rgb = np.median(np.concatenate([part.reshape(len(images), 3, -1) for part in rim], axis=2), axis=2)
    centres = sample_factors(4096, generator=torch.Generator().manual_seed(0))
    means = np.stack([centres["rgb"][centres["colour"] == i].mean(dim=0).numpy() for i in range(len(COLOURS))])
    mask = np.abs(images - rgb[..., None, None]).max(axis=1) > 0.18
    boxes = []
    for axis in (1, 2):  # columns, then rows
        line = mask.sum(axis=axis) >= 2
        boxes.append((line.argmax(axis=1), SIDE - line[:, ::-1].argmax(axis=1)))
    extent = np.max([high - low for low, high in boxes], axis=0)
    places = [np.clip(np.round(((low + high) / 2 - SIDE / 2) / (CELL * SIDE / 2)), -1, 1) for low, high in boxes]
    limit = SIDE * np.mean([*SIZES.values()]) * 0.95  # hardly a drawing fills its frame
    colour = np.linalg.norm(rgb[:, None] - means, axis=2).argmin(axis=1)
    return {"colour": colour, "rgb": rgb, "large": (extent > limit).astype(int), "place": np.stack(places, axis=1)}


def main() -> None:
    arrays = drawings.render_all(RENDERED, "RGBA")
    colour, alpha = arrays["images"][..., :3], arrays["images"][..., 3:].astype(np.uint16)
    colour[:] = (colour * alpha + 127) // 255  # premultiplied, in place
    np.savez_compressed(WORK / "rgba.npz", **arrays)


if __name__ == "__main__":
    with stage("world"):
        main()
