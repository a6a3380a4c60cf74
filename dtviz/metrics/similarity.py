"""When a model decides: the distance of each step's x0 to the final image, and the step that comes close (Figure 5).

distances = similarity_to_final(step_features, final_features)  # (step, sample)
level = level_after_first_step(distilled_distances)
fraction_of_commitment(distances.mean(axis=1), level)  # .30: the base needs 30% of its steps
"""

import numpy as np

from .diversity import unit_rows


def similarity_to_final(step_features, final_features) -> np.ndarray:
    """Return the distance, 1 - cosine, of each step's x0 to the final image, (step, sample) float64 in [0, 2].

    step_features: (step, sample, d), of the decoded x0. final_features: (sample, d), by the same embedder.

    >>> similarity_to_final([[[0.0, 1.0]], [[2.0, 0.0]]], [[1.0, 0.0]]).tolist()
    [[1.0], [0.0]]
    """
    steps = unit_rows(step_features, name="step_features", ndim=3)
    final = unit_rows(final_features, name="final_features")
    if steps.shape[1:] != final.shape:
        raise ValueError(f"step_features {steps.shape}, final_features {final.shape} must be (step, n, d), (n, d)")
    # |a - b|^2 / 2 = 1 - cos for unit vectors, without the cancellation of 1 - a.b near zero.
    return ((steps - final) ** 2).sum(axis=-1) / 2


def concept_timeline(step_features, text_features) -> np.ndarray:
    """Return the cosine (step, sample, word) of each step's CLIP features (step, sample, d) with those of words (word, d)."""
    steps = unit_rows(step_features, name="step_features", ndim=3)
    words = unit_rows(text_features, name="text_features")
    if steps.shape[-1] != words.shape[-1]:
        raise ValueError(f"step_features {steps.shape}, text_features {words.shape} must be (step, n, d), (word, d)")
    return steps @ words.T


def level_after_first_step(distances) -> float:
    """Return the mean over samples of distances (step, sample) or (step,) after the first step."""
    return float(_curves(distances)[0].mean())


def fraction_of_commitment(distances, level):
    """Return the fraction of all steps, in (0, 1], after which a distance is first at most `level`; nan where never.

    distances: (step,) or (step, sample). level: a number or (sample,). Returns a float for one curve, else (sample,) float64.
    """
    curves = _curves(distances)
    level = np.asarray(level, dtype=np.float64)
    if not np.isfinite(level).all() or level.shape not in ((), curves.shape[1:]):
        raise ValueError(f"level {level} must be a finite number, or one for each sample of distances {curves.shape}")
    within = curves <= level
    fraction = (np.where(within.any(axis=0), within.argmax(axis=0), np.nan) + 1) / len(curves)
    return float(fraction) if curves.ndim == 1 else fraction


def _curves(distances) -> np.ndarray:
    curves = np.asarray(distances, dtype=np.float64)
    if curves.ndim not in (1, 2) or not curves.size or not np.isfinite(curves).all():
        raise ValueError(f"distances of shape {curves.shape} must be finite, (step,) or (step, sample), and not empty")
    return curves
