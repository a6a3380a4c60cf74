"""How many values of an attribute the images of one prompt take, read by a model that names them: "young", "old".

    p = posterior(embed(images), embed.text(["a young person", "an old person"]), scale=embed.logit_scale)   # (n, 2)
    np.exp(mutual_information(p))       # 1: all alike; 2: half of the images young, half old, and told apart

The entropy of the mean posterior alone does not tell variety from doubt: a reader that finds every image half young and
half old gives log 2 for n copies of one image. What the image tells about the attribute is that entropy less the mean
entropy of the single posteriors, their mutual information. It is as good as the reader: one that confidently names things
it cannot see finds information too, so show beside it how often the reader is right where the truth is known.

Arrays in, numbers out; entropies in nats.
"""

import numpy as np
from scipy import special


def posterior(images, texts, *, scale: float) -> np.ndarray:
    """Probability of each value for each image, softmax(scale * cosine) over the values (Radford et al. 2021, CLIP).

    images: (n, d) features of images; texts: (v, d) of the v >= 2 values' texts, by the same model; both are normalised
    here. scale: the model's own logit scale, above 0, such as 100 for OpenAI's CLIPs; it decides how sure the model is.
    Returns (n, v) float64, rows sum to 1. All values have the same prior. ValueError: widths differ, fewer than two
    values, a feature that is zero or not finite, another scale.

    >>> posterior([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], scale=np.log(3))
    array([[0.75, 0.25]])
    """
    rows, values = _unit(images, name="images", least=1), _unit(texts, name="texts", least=2)
    if rows.shape[1] != values.shape[1]:
        raise ValueError(f"images {rows.shape} and texts {values.shape} must have the same width, by the same model")
    if not 0 < scale < np.inf:
        raise ValueError(f"scale = {scale} must be a number above 0: the model's logit scale after exp, such as 100")
    return special.softmax(scale * (rows @ values.T), axis=1)


def marginal_entropy(posteriors) -> float:
    """Entropy of the mean posterior, nats, 0 to log v: how evenly the values come up, doubt of the reader included.

    posteriors: (n, v), rows sum to 1; one row an image. ValueError: anything else.

    >>> round(marginal_entropy([[0.5, 0.5], [0.5, 0.5]]), 3)     # log 2, for two images that are told apart by nothing
    0.693
    """
    return float(special.entr(_checked(posteriors).mean(axis=0)).sum())


def mutual_information(posteriors) -> float:
    """Mutual information of image and attribute in nats, entropy of the mean posterior less the mean entropy of each.

    posteriors: (n, v), as `posterior` gives them. 0 when all rows are equal, whatever they say. exp of it is the number
    of values in effect, at most v but for the correction. From n images the entropy of the mean is too low by about
    sum_v var_v / mean_v / (2 n), by its second-order expansion; that is added. Sure posteriors are labels, and both
    agree with `diversity.entropy`: the correction is then Miller and Madow's, (values seen - 1) / (2 n).
    ValueError: posteriors that are none.

    >>> mutual_information([[0.5, 0.5], [0.5, 0.5]])
    0.0
    >>> round(mutual_information([[1.0, 0.0], [0.0, 1.0]] * 50), 3)     # log 2 + 1 / 200
    0.698
    """
    p = _checked(posteriors)
    mean = p.mean(axis=0)
    said = mean > 0
    correction = (p.var(axis=0)[said] / mean[said]).sum() / (2 * len(p))
    return float(max(0.0, special.entr(mean).sum() - special.entr(p).sum(axis=1).mean() + correction))


def _checked(posteriors) -> np.ndarray:
    p = np.asarray(posteriors, dtype=np.float64)
    if p.ndim != 2 or not p.size or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1, atol=1e-6):
        raise ValueError(f"posteriors of shape {p.shape} must be (n, v) probabilities, n >= 1, each row summing to 1")
    return p


def _unit(features, *, name: str, least: int) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    norm = np.linalg.norm(features, axis=-1, keepdims=True) if features.ndim == 2 else np.zeros(1)
    if features.ndim != 2 or len(features) < least or not np.isfinite(norm).all() or (norm == 0).any():
        raise ValueError(
            f"{name} of shape {features.shape} must be (n, d) with n >= {least} and finite rows of nonzero length"
        )
    return features / norm
