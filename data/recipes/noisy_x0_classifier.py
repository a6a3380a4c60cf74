"""Stage 11: a classifier of x0 at every noise level.

    python data/recipes/noisy_x0_classifier.py

The concept classifier was trained on clean pictures and is wrong on early x0. This one is trained on the base's own x0, at several noise
levels, each labelled by what the concept classifier sees in the final image: one linear classifier for all levels, and a
temperature for each, fitted on seeds that the classifier did not see. So are the measures, and the posterior `shown` from
which on an x0 counts as showing a concept: the least at which no more than `false_alarms` of these samples, each of one
concept's prompt, ever show a concept that is gone at the end. Writes `data/models/emoji-judges/plan.safetensors`.
"""

import json
from typing import NamedTuple

import numpy as np
from common import MODELS, arguments, concepts, record, stage
from safetensors.numpy import save_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from world import caption

from dtviz.experiments.study import Study
from dtviz.models import classifiers


class Calibration(NamedTuple):
    """Share of right first choices, their mean posterior, expected calibration error, and number of cases."""

    accuracy: float
    confidence: float
    error: float
    n: int


def calibration(posteriors, truth, *, bins: int = 10) -> Calibration:
    """Measure whether the first choice is right as often as its posterior (n, class) says. truth: (n,) the right class.

    The error is sum_b n_b / n |accuracy_b - confidence_b| over equal bins of the posterior (Guo et al. 2017, eq. 3).
    """
    confidence, right = posteriors.max(axis=1), posteriors.argmax(axis=1) == truth
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weights=right - confidence, minlength=bins)  # n_b (accuracy_b - confidence_b)
    error = float(np.abs(gaps).sum() / len(truth))
    return Calibration(float(right.mean()), float(confidence.mean()), error, len(truth))


def collect(study: Study, prompt: str, stride: int) -> np.ndarray:
    """(level, seed, d): features of every `stride`-th x0 of a prompt and, last, of the final images."""
    levels = study.features(prompt, "base", steps=True)[::stride]
    return np.concatenate([levels, study.features(prompt, "base")[None]])


def fit(features: np.ndarray, label: np.ndarray, strength: float):
    """The classifier of (level, sample, d) features by (sample,) labels, the same for all levels."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
    return model.fit(features.reshape(-1, features.shape[-1]), np.tile(label, len(features)))


def unseen_scores(models: list, features: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(level, sample, class): the scores of each sample by the model of its fold, which did not see it."""
    flat = features.reshape(-1, features.shape[-1])
    scores = np.stack([model.decision_function(flat).reshape(*features.shape[:2], -1) for model in models])
    return scores[fold, :, np.arange(len(fold))].swapaxes(0, 1)


def temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """What (n, class) scores are to be divided by for the least negative log-likelihood of the (n,) true classes."""
    rows = np.arange(len(truth))
    loss = lambda log_t: -log_softmax(scores / np.exp(log_t), axis=1)[rows, truth].mean()  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def least_shown(posteriors: np.ndarray, final: np.ndarray, gone: float, false_alarms: float) -> float:
    """The least posterior, in hundredths, that no more than this share of samples reach with a concept gone at the end.

    posteriors: (level, sample, class). final: (sample, class). One level is enough: on the safe side of two steps in a row.
    """
    highest = np.sort(np.where(final <= gone, posteriors.max(axis=0), 0).max(axis=1))
    allowed = int(false_alarms * len(highest))
    return float(np.floor(100 * highest[len(highest) - 1 - allowed] + 1) / 100)


def main() -> None:
    args = arguments(seeds=10, stride=3, folds=5, strength=0.03, gone=0.1, false_alarms=0.01)
    study = Study.open("emoji-dmd", seeds=range(args.seeds))
    names, clean = [caption(concept) for concept in concepts()], classifiers.load_classifier("concept")
    found = [collect(study, name, args.stride) for name in tqdm(names, desc="x0", mininterval=10)]
    features = np.concatenate(found, axis=1)  # (level, concept and seed, d)
    sigmas = np.array([*study.trace(names[0], "base").sigmas[:: args.stride].tolist(), 0.0])
    label = np.array(clean(features[-1]))
    classes, truth = np.unique(label, return_inverse=True)

    fold = np.tile(np.arange(args.seeds) % args.folds, len(names))
    parts = tqdm(range(args.folds), desc="folds")
    models = [fit(features[:, fold != part], label[fold != part], args.strength) for part in parts]
    scores = unseen_scores(models, features, fold)
    temperatures = np.array([temperature(level, truth) for level in scores])
    posteriors = softmax(scores / temperatures[:, None, None], axis=-1)
    shown = least_shown(posteriors[:-1], posteriors[-1], args.gone, args.false_alarms)
    checks = [calibration(level, truth) for level in posteriors]
    misnamed = [float(np.mean(np.array(clean(level)) == label)) for level in features]

    scaler, linear = fit(features, label, args.strength)
    weight = linear.coef_.T / scaler.scale_[:, None]
    order = np.argsort(sigmas)
    arrays = {
        "weight": weight.astype(np.float16),
        "bias": (linear.intercept_ - scaler.mean_ @ weight).astype(np.float32),
        "sigmas": sigmas[order].astype(np.float32),
        "temperatures": temperatures[order].astype(np.float32),
    }
    facts = {"classes": json.dumps(classes.tolist()), "embedder": clean.embedder, "shown": str(shown)}
    path = MODELS / "emoji-judges" / "plan.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, facts)
    record(
        "noisy_x0_classifier",
        samples=len(label),
        seeds=args.seeds,
        concepts=len(classes),
        as_asked=float(np.mean(label == np.repeat(names, args.seeds))),
        shown=shown,
        false_alarms=args.false_alarms,
        sigmas=sigmas.tolist(),
        temperatures=temperatures.tolist(),
        accuracy=[check.accuracy for check in checks],
        confidence=[check.confidence for check in checks],
        error=[check.error for check in checks],
        clean=misnamed,
    )


if __name__ == "__main__":
    with stage("noisy_x0_classifier"):
        main()
