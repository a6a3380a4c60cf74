"""When a model decides: the distance of each step's x0 to the final image, and the step that comes close (Figure 5).

distances = similarity_to_final(step_features, final_features)  # (step, sample)
fraction_of_commitment(distances.mean(axis=1), 0.4)  # .30: after 30% of the steps it is as near as .4
"""

import numpy as np

from .diversity import unit_rows
from .statistics import checked


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


def fraction_of_commitment(distances, level: float) -> float:
    """Return the fraction of all steps, in (0, 1], after which distances (step,) are first at most `level`; nan if never."""
    distances = checked(distances, name="distances")
    within = np.flatnonzero(distances <= level)
    return float((within[0] + 1) / len(distances)) if len(within) else np.nan
