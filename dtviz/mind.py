"""When a model changes its mind: a concept that its plans show for a while and its final image lacks (paper, Fig. 3).

    found = changes_of_mind(posteriors, final, shown=0.9, gone=0.1)      # (step, sample, concept), (sample, concept)
    found.changed.any(axis=1).mean()                                     # share of the samples that changed their mind

Arrays in, arrays out. The posteriors come from a judge of plans (`judges.load_plans`), or from cosines with texts
(`presence`). They are worth what `calibration` says of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logsumexp


@dataclass(frozen=True)
class Changes:
    """What `changes_of_mind` found.

    Attributes:
        changed: (sample, concept) bool, the plans showed the concept and the final image lacks it.
        level: (sample, concept) in [0, 1], the posterior that several consecutive plans all reach, at its highest.
        step: (sample, concept) int, which of these plans (from 0) shows the concept best.
    """

    changed: np.ndarray
    level: np.ndarray
    step: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """How far posteriors can be believed: share of right first choices, their mean posterior, calibration error, n."""

    accuracy: float
    confidence: float
    error: float
    n: int


class Asked(NamedTuple):
    """Two concepts that a prompt asks for, and two that it does not, as controls."""

    first: str
    second: str
    others: tuple[str, str]


def changes_of_mind(posteriors, final, *, shown: float = 0.9, gone: float = 0.1, steps: int = 2) -> Changes:
    """Concepts that plans show at `steps` consecutive steps or more and that the final image lacks.

    posteriors: (step, sample, concept) in [0, 1], how likely each step's plan shows each concept.
    final:      (sample, concept) in [0, 1], the same of the final image.
    shown:      a plan shows a concept whose posterior is at least this. gone: a final image lacks one that is at most this.
    steps:      a concept that flickers up for fewer steps does not count.
    ValueError: shapes that do not fit, posteriors outside [0, 1], gone not below shown, more `steps` than there are.

    >>> found = changes_of_mind([[[0.1]], [[0.95]], [[0.97]], [[0.2]]], [[0.0]])
    >>> found.changed.item(), found.level.item(), found.step.item()
    (True, 0.95, 2)
    """
    posteriors, final = (_checked(p, name=name) for p, name in ((posteriors, "posteriors"), (final, "final")))
    if posteriors.ndim != 3 or posteriors.shape[1:] != final.shape:
        raise ValueError(
            f"posteriors {posteriors.shape} and final {final.shape} do not fit: needed are (step, sample, concept) and "
            "(sample, concept)"
        )
    if not 0 <= gone < shown <= 1:
        raise ValueError(f"gone={gone} and shown={shown} must be in [0, 1], gone below shown")
    if not 1 <= steps <= len(posteriors):
        raise ValueError(f"steps={steps} must be from 1 to the {len(posteriors)} steps of the posteriors")
    runs = np.lib.stride_tricks.sliding_window_view(posteriors, steps, axis=0)  # (start, sample, concept, steps)
    lowest = runs.min(axis=-1)
    start, level = lowest.argmax(axis=0), lowest.max(axis=0)
    surest = np.take_along_axis(runs, start[None, ..., None], axis=0)[0].argmax(axis=-1)
    return Changes((level >= shown) & (final <= gone), level, start + surest)


def calibration(posteriors, truth, *, bins: int = 10) -> Calibration:
    """Whether the first choice is right as often as its posterior says.

    posteriors: (n, class), rows that sum to one. truth: (n,) the index of the right class.
    The error is the expected calibration error, sum_b n_b / n |accuracy_b - confidence_b| over equal bins of the
    posterior (Guo et al. 2017, eq. 3). ValueError: shapes that do not fit, values out of range, no bins.

    >>> calibration([[0.75, 0.25]] * 4, [0, 0, 0, 1])
    Calibration(accuracy=0.75, confidence=0.75, error=0.0, n=4)
    """
    posteriors, truth = _checked(posteriors, name="posteriors"), np.asarray(truth)
    if posteriors.ndim != 2 or truth.shape != posteriors.shape[:1] or bins < 1:
        raise ValueError(
            f"posteriors {posteriors.shape}, truth {truth.shape} and bins={bins} do not fit: needed are (n, class), (n,) "
            "and at least one bin"
        )
    confidence, right = posteriors.max(axis=1), posteriors.argmax(axis=1) == truth
    found = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(found, weights=right - confidence, minlength=bins)  # n_b (accuracy_b - confidence_b)
    return Calibration(
        float(right.mean()), float(confidence.mean()), float(np.abs(gaps).sum() / len(truth)), len(truth)
    )


def presence(cosines, rest, *, scale: float = 100.0) -> np.ndarray:
    """Posterior that an image shows each concept rather than any of the rest, from cosines with texts.

    cosines: (..., concept) of the image with a text of each concept. rest: (..., text) with texts that lack them all.
    Each concept alone against the rest, exp(s c) / (exp(s c) + sum_r exp(s c_r)), so that two concepts do not compete;
    `scale` s is CLIP's (Radford et al. 2021). Nothing says that it is calibrated. ValueError: no rest, other shapes.

    >>> presence([0.3, 0.2], [0.2]).round(3).tolist()
    [1.0, 0.5]
    """
    cosines, rest = np.asarray(cosines, dtype=np.float64), np.asarray(rest, dtype=np.float64)
    if not cosines.ndim or cosines.shape[:-1] != rest.shape[:-1] or not rest.shape[-1]:
        raise ValueError(f"cosines {cosines.shape} and rest {rest.shape} must be (..., concept) and (..., text)")
    return expit(scale * cosines - logsumexp(scale * rest, axis=-1, keepdims=True))


def ring(concepts) -> list[Asked]:
    """Each concept with the next one, and as controls the one before and the one after the two; the last with the first.

    ValueError: fewer than four concepts, or one given twice.

    >>> ring(["dog", "cat", "sofa", "lamp"])[0]
    Asked(first='dog', second='cat', others=('lamp', 'sofa'))
    """
    names = tuple(concepts)
    if len(names) < 4 or len(set(names)) != len(names):
        raise ValueError(f"concepts={names} must be at least four different ones: two are asked for, two are controls")
    turned = [names[shift:] + names[:shift] for shift in (-1, 0, 1, 2)]
    return [Asked(first, second, (before, after)) for before, first, second, after in zip(*turned, strict=True)]


def _checked(posteriors, *, name: str) -> np.ndarray:
    posteriors = np.asarray(posteriors, dtype=np.float64)
    if not posteriors.size or not ((posteriors >= 0) & (posteriors <= 1 + 1e-6)).all():  # a sum's rounding may exceed 1
        raise ValueError(f"{name} of shape {posteriors.shape} must be posteriors in [0, 1], at least one")
    return posteriors
