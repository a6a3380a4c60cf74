"""Judges of the embedded models' images: in whose style and of what, and of what a plan is, however unfinished.

judge = judges.load("artist")
features = dtviz.embedder(judge.embedder)(images)
judge(features, among=real.artists)       # ["noto", "twemoji", ...], one an image
judge.accuracy(features, "noto")          # the share of the images that it takes for Noto's

Those of `load` were trained on real drawings only, and misname unfinished plans; `load_plans` was trained on plans.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from safetensors import safe_open
from scipy.special import softmax

from .errors import Unavailable
from .mind import presence
from .outside import digests, reading
from .pairs import models

KINDS = ("artist", "concept", "style")


@dataclass(frozen=True)
class Judge:
    """A linear classifier of an embedder's features.

    Attributes:
        kind: "artist", "concept" or "style", which knows the artists kept out of training as well.
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


@dataclass(frozen=True)
class PlanJudge:
    """A linear classifier of the plans x̂0 at every noise level, by the concept that the final image shows.

    Attributes:
        embedder: the name of the embedder whose features it reads.
        classes: the concepts.
        weight, bias: (d, class) and (class,), the same at all noise levels.
        sigmas, temperatures: (level,) ascending noise levels and what the scores are divided by there, so that the posteriors
            are calibrated (Guo et al. 2017); linear in between, constant beyond. Noise level 0 is a final image.
        shown: the posterior from which on a plan can be said to show a concept; its card says how it was chosen.
    """

    embedder: str
    classes: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    sigmas: np.ndarray
    temperatures: np.ndarray
    shown: float

    def __call__(self, features, *, sigmas) -> np.ndarray:
        """How likely the plan of each step shows each concept.

        Args:
            features: (step, n, d), by this judge's embedder.
            sigmas: (step,), the noise level of each step's plan, as in a `Trace`; 0 for final images.

        Returns:
            (step, n, class) float64, posteriors that sum to one over the classes.

        Raises:
            ValueError: features of another shape, or noise levels that do not fit.
        """
        features, sigmas = np.asarray(features, dtype=np.float64), np.asarray(sigmas, dtype=np.float64)
        if features.ndim != 3 or features.shape[-1] != len(self.weight) or sigmas.shape != features.shape[:1]:
            raise ValueError(
                f"features {features.shape} and sigmas {sigmas.shape} must be (step, n, {len(self.weight)}), made by the "
                f"embedder {self.embedder!r}, and (step,)"
            )
        temperature = np.interp(sigmas, self.sigmas, self.temperatures)
        return softmax((features @ self.weight + self.bias) / temperature[:, None, None], axis=-1)


@dataclass(frozen=True)
class TextJudge:
    """A CLIP as a judge: an image shows a concept if it is nearer to a text of it than to texts without. Not calibrated.

    Attributes:
        classes: the concepts.
        texts, without: (class, d) and (text, d), features of a text of each concept, and of texts that have none.
        shown: the posterior from which on a plan is said to show a concept; nothing but habit chose it.
    """

    classes: tuple[str, ...]
    texts: np.ndarray
    without: np.ndarray
    shown: float = 0.9

    @classmethod
    def build(
        cls, text: Callable[[list[str]], np.ndarray], concepts: Iterable[str], *, template: str, without: Iterable[str]
    ) -> TextJudge:
        """From a CLIP embedder's `text`. ValueError: a template without the place "{}" of the concept.

        TextJudge.build(embed.text, ["dog", "cat"], template="a photo of a {}", without=["a photo"])
        """
        concepts = tuple(concepts)
        if "{}" not in template:
            raise ValueError(f"template={template!r} must hold {{}} where the concept belongs")
        return cls(concepts, text([template.format(concept) for concept in concepts]), text(list(without)))

    def __call__(self, features, *, sigmas) -> np.ndarray:
        """(step, n, class) of features (step, n, d) by the same CLIP, see `mind.presence`; the noise levels make no difference."""
        return presence(features @ self.texts.T, features @ self.without.T)


def load(kind: str) -> Judge:
    """The judge of `kind`, "artist", "concept" or "style", from `data/models/emoji-judges`; its card has their accuracy.

    Raises:
        ValueError: another kind, or its file is damaged.
        Unavailable: its file is not there.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    told, arrays = _read(kind)
    return Judge(kind, told["embedder"], tuple(json.loads(told["classes"])), **arrays)


def load_plans() -> PlanJudge:
    """The judge of plans, from `data/models/emoji-judges`; its card has its accuracy and calibration at every level.

        judge = load_plans()
        posteriors = judge(study.features("guitar", "base", steps=True), sigmas=study.trace("guitar", "base").sigmas)

    Raises:
        Unavailable: its file is not there.
    """
    told, arrays = _read("plan")
    return PlanJudge(told["embedder"], tuple(json.loads(told["classes"])), **arrays, shown=float(told["shown"]))


def _read(kind: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """What a judge's file tells, and its arrays as float64."""
    path = models() / "emoji-judges" / f"{kind}.safetensors"
    if not path.exists():
        raise Unavailable(f"judge {kind!r} lacks {path}: restore it from the repository, or run `make models`")
    digests(models(), ["emoji-judges"])
    with reading(path), safe_open(path, framework="numpy") as file:
        return file.metadata(), {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
