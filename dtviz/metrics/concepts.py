"""Concepts and attributes that a classifier reads in images, and where in the image it reads them (Figure 3).

level, step = clearest_steps(posteriors)  # of each step's x0
((level >= 0.9) & (final <= 0.1)).any(axis=1).mean()  # share of samples that change their mind
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage, special


class ConceptPair(NamedTuple):
    """Two concepts that a prompt asks for, and two others as controls."""

    first: str
    second: str
    others: tuple[str, str]


def clearest_steps(posteriors) -> tuple[np.ndarray, np.ndarray]:
    """Return how clearly x0 shows each concept on the way, and at which step best, two arrays (sample, concept).

    posteriors: (step, sample, concept) in [0, 1], at least two steps. The first array is the highest posterior that two steps in
    a row both reach, so that a flicker does not count. The second is the better one of these two steps, from 0.
    """
    posteriors = np.asarray(posteriors, dtype=np.float64)
    within = (posteriors >= 0) & (posteriors <= 1 + 1e-6)  # the rounding of a sum may exceed 1
    if posteriors.ndim != 3 or len(posteriors) < 2 or not posteriors.size or not within.all():
        raise ValueError(f"posteriors of shape {posteriors.shape} must be (step >= 2, sample, concept) in [0, 1]")
    lowest = np.minimum(posteriors[:-1], posteriors[1:])
    start = lowest.argmax(axis=0)
    rise = np.take_along_axis(np.diff(posteriors, axis=0), start[None], axis=0)[0]
    return lowest.max(axis=0), start + (rise > 0)


def concept_pairs(concepts) -> list[ConceptPair]:
    """Pair each concept with the next, the last with the first. Controls are the ones before and after the two."""
    names = tuple(concepts)
    if len(names) < 4 or len(set(names)) != len(names):
        raise ValueError(f"concepts={names} must be at least four different ones: two are asked for, two are controls")
    rotated = [names[shift:] + names[:shift] for shift in (-1, 0, 1, 2)]
    return [ConceptPair(first, second, (before, after)) for before, first, second, after in zip(*rotated, strict=True)]


def mutual_information(posteriors) -> float:
    """Return the mutual information of image and attribute, of posteriors (n, v), in nats.

    It is the entropy of the mean posterior, less the mean entropy of each, plus sum_v var_v / mean_v / (2 n) for few images.
    """
    p = checked_probabilities(posteriors, name="posteriors")
    mean = p.mean(axis=0)
    said = mean > 0
    correction = (p.var(axis=0)[said] / mean[said]).sum() / (2 * len(p))
    return float(max(0.0, special.entr(mean).sum() - special.entr(p).sum(axis=1).mean() + correction))


def occlusion_windows(height: int, width: int, *, size: int, stride: int) -> np.ndarray:
    """Return square patches that cover an image, (n, 4) int: top, left, bottom, right. Those at the border are cut."""
    tops, lefts = (range(0, max(side - size, 0) + stride, stride) for side in (height, width))
    return np.array([(t, x, min(t + size, height), min(x + size, width)) for t in tops for x in lefts])


def occlude(image, places) -> np.ndarray:
    """Return copies (n, 3, h, w) of an image (3, h, w), each with one of n places hidden by the border's median colour."""
    border = np.concatenate([image[:, 0], image[:, -1], image[:, 1:-1, 0], image[:, 1:-1, -1]], axis=1)
    hidden = np.repeat(image[None], len(places), axis=0)
    for one, (top, left, bottom, right) in zip(hidden, places, strict=True):
        one[:, top:bottom, left:right] = np.median(border, axis=1)[:, None, None]
    return hidden


def occlusion_box(drops, places, *, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the region whose hiding lowers the score most: top, left, bottom, right (Zeiler & Fergus 2014).

    drops: (n,) how far the score falls when each of the places (n, 4) is hidden. shape: height and width of the image.
    The region is connected and has at least half of the largest mean drop everywhere.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    for drop, (top, left, bottom, right) in zip(drops, places, strict=True):
        total[top:bottom, left:right] += drop
        count[top:bottom, left:right] += 1
    mean = total / np.maximum(count, 1)
    if not mean.max() > 0:
        raise ValueError("drops has no place whose hiding lowers the score: there is nothing to box")
    regions, _ = ndimage.label(mean >= 0.5 * mean.max())
    rows, columns = ndimage.find_objects(regions)[regions.flat[mean.argmax()] - 1]
    return rows.start, columns.start, rows.stop, columns.stop


def checked_probabilities(values, *, name: str, atol: float = 1e-6) -> np.ndarray:
    """Return probabilities (n, v) as float64, or raise ValueError."""
    p = np.asarray(values, dtype=np.float64)
    if p.ndim != 2 or not p.size or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1, atol=atol):
        raise ValueError(f"{name} of shape {p.shape} must be (n, v), n >= 1, each row summing to 1")
    return p
