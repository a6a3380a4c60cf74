"""Linear classifiers of the embedded models' images by artist, concept or style, and of x0 at every noise level."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp, softmax

from ..files import Unavailable, check_hashes, data, read_safetensors


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of features (n, d), trained on painted pictures only. `among` are the possible classes."""

    kind: str  # "artist", "concept", or "style", which also has the artists that were kept out of training
    embedder: str
    classes: tuple[str, ...]  # the artists, or the prompts
    weight: np.ndarray  # (d, class)
    bias: np.ndarray  # (class,)

    def __call__(self, features, *, among: Iterable[str] | None = None) -> list[str]:
        """Return the most likely class of each image."""
        names, scores = self._scores(features, among)
        return [names[column] for column in scores.argmax(axis=1)]

    def posterior(self, features, *, among: Iterable[str] | None = None) -> np.ndarray:
        """Return the softmax of the scores, (n, class), in the order of `among` or `classes`."""
        return softmax(self._scores(features, among)[1], axis=1)

    def accuracy(self, features, truth: str) -> float:
        """Return the share of the images that are classified as `truth`, in [0, 1]."""
        if truth not in self.classes:
            raise ValueError(f"truth={truth!r} is not one of the {self.kind}s {', '.join(self.classes)}")
        return float(np.mean([name == truth for name in self(features)]))

    def _scores(self, features, among: Iterable[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
        features, width = np.asarray(features), len(self.weight)
        if features.ndim != 2 or features.shape[1] != width or not len(features):
            raise ValueError(f"features {features.shape} must be (n >= 1, {width}), by the embedder {self.embedder!r}")
        names = self.classes if among is None else tuple(dict.fromkeys(among))
        if not names or not set(names) <= set(self.classes):
            raise ValueError(f"among={names} must be one or more of the {self.kind}s {', '.join(self.classes)}")
        columns = [self.classes.index(name) for name in names]
        return names, features @ self.weight[:, columns] + self.bias[columns]


@dataclass(frozen=True)
class NoisyX0Classifier:
    """A linear classifier of x0 at every noise level, by the concept that the final image shows.

    Scores are divided by a temperature for each noise level (Guo et al. 2017), linear in between, constant beyond.
    """

    embedder: str
    classes: tuple[str, ...]  # the concepts
    weight: np.ndarray  # (d, class), the same at all noise levels
    bias: np.ndarray  # (class,)
    sigmas: np.ndarray  # (level,), ascending; 0 is a final image
    temperatures: np.ndarray  # (level,)
    shown: float  # posterior from which on an x0 counts as showing a concept

    def __call__(self, features, *, sigmas) -> np.ndarray:
        """Return the posterior of each concept, (step, n, class), from features (step, n, d) and sigmas (step,)."""
        features, sigmas = np.asarray(features, dtype=np.float64), np.asarray(sigmas, dtype=np.float64)
        if features.ndim != 3 or features.shape[-1] != len(self.weight) or sigmas.shape != features.shape[:1]:
            shapes = f"features {features.shape} and sigmas {sigmas.shape}"
            raise ValueError(f"{shapes} must be (step, n, {len(self.weight)}) and (step,)")
        temperature = np.interp(sigmas, self.sigmas, self.temperatures)
        return softmax((features @ self.weight + self.bias) / temperature[:, None, None], axis=-1)


class TextClassifier:
    """A zero-shot classifier by CLIP, not calibrated: an image against a text of each concept and texts without one.

    The posterior of cosine c against cosines c_r of the texts without is exp(100 c) / (exp(100 c) + sum_r exp(100 c_r)).
    """

    shown = 0.9  # posterior from which on an x0 counts as showing a concept; a convention

    def __init__(self, text: Callable, concepts: Iterable[str], *, template: str, without: Iterable[str]) -> None:
        self.classes = tuple(concepts)
        self.texts = text([template.format(concept) for concept in self.classes])
        self.without = text(list(without))

    def __call__(self, features, *, sigmas) -> np.ndarray:
        """Return the posterior of each concept, (step, n, class), from features (step, n, d). Ignore `sigmas`."""
        cosines, rest = (100 * np.float64(features @ texts.T) for texts in (self.texts, self.without))
        return expit(cosines - logsumexp(rest, axis=-1, keepdims=True))


def load_classifier(kind: str) -> Classifier:
    """Load the classifier "artist", "concept" or "style". `data/models/emoji-judges/README.md` has its accuracy."""
    if kind not in ("artist", "concept", "style"):
        raise ValueError(f"kind={kind!r} is not one of artist, concept, style")
    return Classifier(kind, **_read(kind))


def load_noisy_x0_classifier() -> NoisyX0Classifier:
    """Load the classifier of x0 at every noise level."""
    fields = _read("plan")
    return NoisyX0Classifier(**fields | {"shown": float(fields["shown"])})


def _read(name: str) -> dict[str, Any]:
    """Return a file's header and its arrays, as float64. Raise Unavailable if it is missing."""
    path = data("models") / "emoji-judges" / f"{name}.safetensors"
    if not path.exists():
        raise Unavailable(f"classifier {name!r} lacks {path}: restore it from the repository, or run `make models`")
    check_hashes(data("models"), ["emoji-judges"])
    arrays, header = read_safetensors(path)
    arrays = {key: array.astype(np.float64) for key, array in arrays.items()}
    return header | arrays | {"classes": tuple(json.loads(header["classes"]))}
