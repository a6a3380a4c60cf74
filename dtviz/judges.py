"""Judges of the embedded models' images, trained on real drawings only: in whose style, and of what.

judge = judges.load("artist")
features = dtviz.embedder(judge.embedder)(images)
judge(features, among=real.artists)       # ["noto", "twemoji", ...], one an image
judge.accuracy(features, "noto")          # the share of the images that it takes for Noto's
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from safetensors import safe_open
from scipy.special import softmax

from .errors import Unavailable
from .pairs import models

KINDS = ("artist", "concept")


@dataclass(frozen=True)
class Judge:
    """A linear classifier of an embedder's features.

    Attributes:
        kind: "artist" or "concept".
        embedder: the name of the embedder whose features it reads.
        classes: the artists, or the prompts.
        weight, bias: (d, class) and (class,).
    """

    kind: str
    embedder: str
    classes: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features, *, among: Iterable[str] | None = None) -> list[str]:
        """The most likely class of each image.

        Args:
            features: (n, d), by this judge's embedder.
            among: the classes that come into question, such as the artists who drew a prompt; None for all.

        Raises:
            ValueError: features of another width, or a class that the judge does not know.
        """
        names, scores = self._scores(features, among)
        return [names[column] for column in scores.argmax(axis=1)]

    def posterior(self, features, *, among: Iterable[str] | None = None) -> np.ndarray:
        """How likely each class is for each image, (n, class), in the order of `among` or `classes`; rows sum to 1.

        Multinomial logistic regression's softmax of the scores. Arguments and errors as above.
        """
        return softmax(self._scores(features, among)[1], axis=1)

    def accuracy(self, features, truth: str) -> float:
        """The share of the images that are taken for what they should be, in [0, 1].

        Args:
            features: (n, d), n >= 1, by this judge's embedder.
            truth: the class of all these images, such as the prompt they were made from.

        Raises:
            ValueError: no features, features of another width, or a class that the judge does not know.
        """
        if truth not in self.classes:
            raise ValueError(
                f"truth={truth!r} is not one of the {self.kind}s that this judge knows: {', '.join(self.classes)}"
            )
        found = self(features)
        if not found:
            raise ValueError(f"features of shape {np.shape(features)} hold no image, of which there is no accuracy")
        return found.count(truth) / len(found)

    def _scores(self, features, among: Iterable[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
        """The classes in question, and their scores (n, class)."""
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != len(self.weight):
            raise ValueError(
                f"features of shape {features.shape} must be (n, {len(self.weight)}), made by the embedder {self.embedder!r}"
            )
        names = self.classes if among is None else tuple(dict.fromkeys(among))
        unknown = sorted(set(names) - set(self.classes))
        if unknown or not names:
            raise ValueError(f"among={names} must be one or more of the {self.kind}s {', '.join(self.classes)}")
        columns = [self.classes.index(name) for name in names]
        return names, features @ self.weight[:, columns] + self.bias[columns]


def load(kind: str) -> Judge:
    """The judge of `kind`, "artist" or "concept", from `data/models/emoji-judges`; its card has their accuracy.

    Raises:
        ValueError: another kind.
        Unavailable: its file is not there.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    path = models() / "emoji-judges" / f"{kind}.safetensors"
    if not path.exists():
        raise Unavailable(f"judge {kind!r} lacks {path}: restore it from the repository, or run `make models`")
    with safe_open(path, framework="numpy") as file:
        told = file.metadata()
        arrays = {name: file.get_tensor(name).astype(np.float64) for name in ("weight", "bias")}
    return Judge(kind, told["embedder"], tuple(json.loads(told["classes"])), **arrays)
