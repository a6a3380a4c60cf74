"""Known factors of the embedded pairs' images: colour of the background, size and place of the drawing on it.

factors = read_factors(images)      # {"colour": (n,), "size": (n,), "place": (n,)}, indices into FACTORS
variety(factors["colour"], "colour").value      # 1 if the samples vary as the training pictures do
decided_at(read_factors(step_images)["place"])  # (n,) step after which the place no longer changes
"""

import numpy as np

from .diversity import entropy

SIDE = 64  # pixels
# Mean RGB of each background colour of the training pictures, and how often they have it
COLOURS = {
    "white": (0.99, 0.98, 0.98), "red": (0.95, 0.60, 0.60), "orange": (0.95, 0.75, 0.58), "yellow": (0.95, 0.90, 0.58),
    "green": (0.58, 0.95, 0.61), "blue": (0.58, 0.77, 0.95), "purple": (0.77, 0.58, 0.95), "pink": (0.95, 0.58, 0.77),
    "grey": (0.76, 0.75, 0.75),
}  # fmt: skip
SIZES = {"small": 0.5625, "big": 0.75}  # side of the drawing's frame, as a share of the picture's
CELL = 8  # pixels between neighbouring places
LIMIT = 38  # pixels: a longer box is a big drawing, chosen on reconstructions of training pictures
PLACES = (
    "top left", "top middle", "top right", "middle left", "middle", "middle right",
    "bottom left", "bottom middle", "bottom right",
)  # fmt: skip
FACTORS = {"colour": tuple(COLOURS), "size": tuple(SIZES), "place": PLACES}
SHARES = {"colour": np.array([2] + [1] * 8) / 10, "size": np.full(2, 1 / 2), "place": np.full(9, 1 / 9)}


def read_factors(images) -> dict[str, np.ndarray]:
    """Read images (..., 3, 64, 64) in [0, 1]. Return indices (...) into `FACTORS` of "colour", "size" and "place".

    The median of the border is the background. What differs from it by more than .12 is the drawing, whose bounding box
    gives size and place. The card of `data/models` has the accuracy of each.
    """
    images = np.asarray(images)
    if images.shape[-3:] != (3, SIDE, SIDE):
        raise ValueError(f"images {images.shape} must be (..., 3, {SIDE}, {SIDE}), of an embedded pair")
    flat, edge = images.reshape(-1, 3, SIDE, SIDE), [0, 1, -2, -1]
    border = np.concatenate([flat[:, :, edge], flat.swapaxes(2, 3)[:, :, edge]], axis=2)
    background = np.median(border, axis=(2, 3))
    colour = np.linalg.norm(background[:, None] - np.array([*COLOURS.values()]), axis=2).argmin(axis=1)
    mask = np.abs(flat - background[..., None, None]).max(axis=1) > 0.12
    boxes = []
    for axis in (2, 1):  # rows, then columns
        line = mask.sum(axis=axis) >= 2
        boxes.append((line.argmax(axis=1), SIDE - line[:, ::-1].argmax(axis=1)))
    size = np.max([high - low for low, high in boxes], axis=0) > LIMIT
    row, column = (np.clip(np.round(((low + high) / 2 - SIDE / 2) / CELL), -1, 1) + 1 for low, high in boxes)
    labels = {"colour": colour, "size": size, "place": 3 * row + column}
    return {name: index.astype(int).reshape(images.shape[:-3]) for name, index in labels.items()}


class FactorReader:
    """Read images -> (n, 3 + d) float32, the indices of `read_factors` and the features of `embed`, so that a study caches both."""

    def __init__(self, embed) -> None:
        self.embed, self.fingerprint = embed, f"factors-1 {embed.fingerprint}"  # raise it when `read_factors` changes

    def __call__(self, images) -> np.ndarray:
        return np.column_stack([*read_factors(images).values(), self.embed(images)]).astype(np.float32)


def split_readings(readings) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the factors, name -> (...) indices, and the features (..., d) in the readings of a `FactorReader`."""
    return {name: readings[..., i].astype(int) for i, name in enumerate(FACTORS)}, readings[..., len(FACTORS) :]


def named_factors(prompt: str) -> dict[str, int]:
    """Return what a prompt such as "small rocket on green" says of the factors, {"size": 0, "colour": 4}."""
    size, colour = prompt.partition(" ")[0], prompt.rpartition(" on ")[2]
    said = {"size": (SIZES, size), "colour": (COLOURS, colour)}
    return {name: [*values].index(value) for name, (values, value) in said.items() if value in values}


def variety(labels, factor: str) -> float:
    """Return the effective number of values in labels (n,) over that of the training pictures, about 1 if they vary alike.

    Effective number: exp of the entropy in nats, with Miller's correction.
    """
    shares = SHARES[factor]
    return float(np.exp(entropy(labels) + (shares * np.log(shares)).sum()))


def coverage(factors: dict[str, np.ndarray]) -> float:
    """Return the number of different combinations of all factors over that expected of as many training pictures."""
    labels = np.stack([factors[name] for name in FACTORS], axis=1)
    shares = np.einsum("i,j,k->ijk", *(SHARES[name] for name in FACTORS))
    return float(len(np.unique(labels, axis=0)) / (1 - (1 - shares) ** len(labels)).sum())


def decided_at(labels) -> np.ndarray:
    """Return the step (n,), from 1, after which labels (step, n) equal the last one to the end."""
    labels = np.asarray(labels)
    differs = labels[:-1] != labels[-1]
    return np.where(differs.any(axis=0), len(differs) - differs[::-1].argmax(axis=0), 0) + 1
