"""Where an image shows what a judge sees in it: hide a patch, and see how far the score falls (Zeiler & Fergus 2014).

    places = windows(64, 64, size=16, stride=8)
    drops = score(image) - score(occlude(image, places))       # by any judge, such as a concept's log posterior
    box(drops, places, shape=(64, 64))                         # (top, left, bottom, right)

Arrays in, arrays out; boxes are in pixels, bottom and right excluded.
"""

import numpy as np
from scipy import ndimage


def windows(height: int, width: int, *, size: int, stride: int) -> np.ndarray:
    """(n, 4) int: top, left, bottom, right of square patches that cover an image; those at the border are cut.

    ValueError: a size or stride below one, or a stride above the size, which leaves gaps.

    >>> windows(4, 2, size=2, stride=2).tolist()
    [[0, 0, 2, 2], [2, 0, 4, 2]]
    """
    if not 1 <= stride <= size:
        raise ValueError(f"stride={stride} must be from 1 to size={size}, so that every pixel is hidden at least once")
    tops, lefts = (range(0, max(side - size, 0) + stride, stride) for side in (height, width))
    return np.array([(t, x, min(t + size, height), min(x + size, width)) for t in tops for x in lefts])


def occlude(image, places) -> np.ndarray:
    """(n, 3, h, w): the image (3, h, w) with each of n places hidden by its background, the median colour of its border.

    >>> occlude(np.eye(3)[None].repeat(3, axis=0), [[0, 0, 1, 1]])[0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(
            f"image of shape {image.shape} must be (channel, height, width): hide patches of one at a time"
        )
    border = np.concatenate([image[:, 0], image[:, -1], image[:, 1:-1, 0], image[:, 1:-1, -1]], axis=1)
    hidden = np.repeat(image[None], len(places), axis=0)
    for one, (top, left, bottom, right) in zip(hidden, places, strict=True):
        one[:, top:bottom, left:right] = np.median(border, axis=1)[:, None, None]
    return hidden


def box(drops, places, *, shape: tuple[int, int], share: float = 0.5) -> tuple[int, int, int, int]:
    """The region whose hiding costs most: top, left, bottom, right.

    drops:  (n,) how far the score falls when each place is hidden. places: (n, 4), of `windows`.
    share:  a pixel counts whose drop, the mean of the places over it, is at least this share of the largest; the region is
            the connected one around the largest.
    ValueError: shapes that do not fit, a share outside (0, 1], or no place whose hiding costs anything.

    >>> box([0.0, 1.0], windows(4, 2, size=2, stride=2), shape=(4, 2))
    (2, 0, 4, 2)
    """
    drops, places = np.asarray(drops, dtype=np.float64), np.asarray(places)
    if places.shape != (*drops.shape, 4) or not 0 < share <= 1:
        raise ValueError(
            f"drops {drops.shape}, places {places.shape} and share={share} must be (n,), (n, 4), in (0, 1]"
        )
    total, count = np.zeros(shape), np.zeros(shape)
    for drop, (top, left, bottom, right) in zip(drops, places, strict=True):
        total[top:bottom, left:right] += drop
        count[top:bottom, left:right] += 1
    mean = total / np.maximum(count, 1)
    peak = mean.max()
    if not peak > 0:
        raise ValueError("drops has no place whose hiding lowers the score: there is nothing to box")
    regions, _ = ndimage.label(mean >= share * peak)
    rows, columns = ndimage.find_objects(regions)[regions.flat[mean.argmax()] - 1]
    return rows.start, columns.start, rows.stop, columns.stop
