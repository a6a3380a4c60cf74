"""When a model decides: the distance of each step's x̂0 to the final image, and the step that comes close (Fig. 5).

    distances = similarity_to_final(step_features, final_features)       # (step, sample)
    level = level_after_first_step(student_distances)                    # where the student is after step 1
    fraction_of_commitment(distances.mean(axis=1), level)                # .30: the base needs 30% of its steps

Steps are indices from 0. Step i of n has done the fraction (i + 1) / n of the inference.
"""

import numpy as np


def similarity_to_final(step_features, final_features) -> np.ndarray:
    """Distance, 1 - cosine, of each step's features to those of the same sample's final image (paper, Fig. 5).

    step_features:   (step, sample, d), features of the decoded x̂0; any scale, they are normalised here.
    final_features:  (sample, d), features of the final images, by the same embedder.
    Returns (step, sample) float64 in [0, 2]; 0 is the same direction. ValueError: shapes that do not fit, a feature
    that is zero or not finite.

    >>> similarity_to_final([[[0.0, 1.0]], [[2.0, 0.0]]], [[1.0, 0.0]])
    array([[1.],
           [0.]])
    """
    steps = _unit(step_features, name="step_features")
    final = _unit(final_features, name="final_features")
    if steps.ndim != 3 or steps.shape[1:] != final.shape:
        raise ValueError(
            f"step_features {steps.shape} and final_features {final.shape} do not fit: needed are (step, sample, d) "
            "and (sample, d); did you flatten (step * sample, d), or embed a different number of final images?"
        )
    # |a - b|^2 / 2 = 1 - cos for unit vectors, without the cancellation of 1 - a.b near zero.
    return ((steps - final) ** 2).sum(axis=-1) / 2


def concept_timeline(step_features, text_features) -> np.ndarray:
    """How near each step's plan is to each of some words: the cosine of an image's and a text's features.

    step_features:  (step, sample, d), features of the decoded x̂0 by a model with an image and a text half (CLIP).
    text_features:  (word, d), features of the words by the same model.
    Returns (step, sample, word) float64 in [-1, 1]. A model trained on finished images may misread early plans. ValueError:
    shapes that do not fit, a feature that is zero or not finite.

    >>> concept_timeline([[[0.0, 1.0]], [[2.0, 0.0]]], [[1.0, 0.0]])[:, 0, 0].tolist()
    [0.0, 1.0]
    """
    steps = _unit(step_features, name="step_features")
    words = _unit(text_features, name="text_features")
    if steps.ndim != 3 or words.ndim != 2 or steps.shape[-1] != words.shape[-1]:
        raise ValueError(
            f"step_features {steps.shape} and text_features {words.shape} do not fit: needed are (step, sample, d) and "
            "(word, d), by one model"
        )
    return steps @ words.T


def level_after_first_step(distances) -> float:
    """Mean distance over samples after the first step: the level that the other models are asked to reach.

    distances: (step, sample), or (step,) for a mean curve. ValueError: no steps, or a value that is not finite.

    >>> level_after_first_step([[0.25, 0.5], [0.0, 0.1]])
    0.375
    """
    return float(_curves(distances)[0].mean())


def step_of_commitment(distances, level):
    """First step (index from 0) whose distance is at most `level`; nan where no step comes so close.

    distances: (step,) for one curve, such as a mean, or (step, sample) for a step per sample.
    level:     the distance to come within: a number, or (sample,).
    Returns a float for one curve, (sample,) float64 otherwise. The *first* step within the level counts, even if the
    curve rises again later. ValueError: no steps, or a value that is not finite.

    >>> step_of_commitment([0.9, 0.5, 0.2, 0.0], 0.5)
    1.0
    """
    curves = _curves(distances)
    level = np.asarray(level, dtype=np.float64)
    if not np.isfinite(level).all() or level.shape not in ((), curves.shape[1:]):
        raise ValueError(f"level {level} must be a finite number, or one for each sample of distances {curves.shape}")
    within = curves <= level
    step = np.where(within.any(axis=0), within.argmax(axis=0), np.nan)
    return float(step) if curves.ndim == 1 else step


def fraction_of_commitment(distances, level):
    """`step_of_commitment` as the fraction of all steps done by then, (i + 1) / n, in (0, 1]; nan where never.

    >>> fraction_of_commitment([0.9, 0.5, 0.2, 0.0], 0.5)
    0.5
    """
    return (step_of_commitment(distances, level) + 1) / len(np.asarray(distances))


def _curves(distances) -> np.ndarray:
    curves = np.asarray(distances, dtype=np.float64)
    if curves.ndim not in (1, 2) or not curves.size or not np.isfinite(curves).all():
        raise ValueError(
            f"distances of shape {curves.shape} must be finite, with shape (step,) or (step, sample) and at least one "
            "step and one sample; nan usually comes from an x̂0 that is not finite"
        )
    return curves


def _unit(features, *, name: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    norm = np.linalg.norm(features, axis=-1, keepdims=True) if features.ndim else np.zeros(1)
    if not features.size or not np.isfinite(norm).all() or (norm == 0).any():
        raise ValueError(
            f"{name} of shape {features.shape} must hold finite rows of nonzero length: a zero or nan feature has no "
            "cosine; look at the image that it came from"
        )
    return features / norm
