"""Controls with the prompts they are tried on and what judges them: the rows of Table 1.

for case in cases.load("emoji-dmd"):
    for measure in case.measures:
        study = Study.open("emoji-dmd", seeds=range(10), embedder_name=measure.embedder)
        for prompt in case.prompts:
            features = study.features(prompt, "distilled", controls=[case.control.at(case.scale)])
            measure(prompt, features)       # (seed,)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import judges
from ..controls import Control
from ..embed import Embedder, embedder
from ..models.specs import spec_of
from ..outside import reading
from ..study import EMOJI_PROMPTS
from .files import load as load_control
from .files import shipped

STUDENTS = {"dmd": "DMD", "lcm": "LCM", "turbo": "Turbo", "lightning": "Lightning"}  # the paper's four, in its order
CLIP = "clip:openai/clip-vit-large-patch14"  # of hub pairs
COLUMNS = ("control", "file", "prompt", "towards", "scale")


@dataclass(frozen=True)
class Likeness:
    """100 times the cosine of an image with a text in a CLIP; or with one text less that with another, which has no zero to choose.

    Attributes:
        name: as in "emoji-clip score" or "emoji-clip contrast".
        embedder: the CLIP's name.
        targets: prompt -> (d,), the text's features, or the difference of two texts'.
    """

    name: str
    embedder: str
    targets: Mapping[str, np.ndarray]

    def __call__(self, prompt: str, features: np.ndarray) -> np.ndarray:
        """(n,) of features (n, d), of length 1. KeyError: the control is not tried on this prompt."""
        return 100 * features @ self.targets[prompt]


@dataclass(frozen=True)
class Verdict:
    """100 times a judge's posterior of what an image should become.

    Attributes:
        name: as in "concept judge".
        judge: a classifier that was trained on real drawings.
        truth: prompt -> the class that an image of it should become.
        among: prompt -> the classes that come into question.
    """

    name: str
    judge: judges.Judge
    truth: Mapping[str, str]
    among: Mapping[str, tuple[str, ...]]

    @property
    def embedder(self) -> str:
        """The name of the embedder whose features the judge reads."""
        return self.judge.embedder

    def __call__(self, prompt: str, features: np.ndarray) -> np.ndarray:
        """(n,) of features (n, d). KeyError: the control is not tried on this prompt."""
        among = self.among[prompt]
        return 100 * self.judge.posterior(features, among=among)[:, among.index(self.truth[prompt])]


@dataclass(frozen=True)
class Case:
    """A control, what it is tried on, and what should rise.

    Attributes:
        control: what is put on.
        prompts: those that it is tried on.
        measures: one or more; the first is the paper's kind where there is one.
        scale: at which it is tried.
    """

    control: Control
    prompts: tuple[str, ...]
    measures: tuple[Likeness | Verdict, ...]
    scale: float = 1.0

    def facts(self) -> dict[str, Any]:
        """What a figure has to tell about it, JSON-compatible."""
        told = {"name": self.control.name, "kind": self.control.kind, "fingerprint": self.control.fingerprint}
        measures = [measure.name for measure in self.measures]
        return told | {
            "facts": dict(self.control.facts),
            "prompts": list(self.prompts),
            "measures": measures,
            "scale": self.scale,
        }


def load(pair: str, *, file: str | Path = "", trained_on: str = "base") -> list[Case]:
    """What is tried on a pair, and on the others of its base.

    Args:
        pair: a name in `dtviz.pairs()`.
        file: a CSV of one's own, one row a control and prompt: `control`, its name; `file`, beside the CSV, or in a repository of the
            hub ("owner/name", "owner/name/age.safetensors"); `prompt`; `towards`, the text that the image should come nearer to;
            `scale`; and if they are there `away`, the text of the other end, and `trained_on`. "" takes the controls that dtviz ships.
        trained_on: those that were trained on the "base", or on this student ("emoji-dmd").

    Raises:
        ValueError: no such pair; columns are missing; or dtviz ships no controls for this pair and no file is given.
        Unavailable: a control is not on this machine.
    """
    embedded = spec_of(pair).embedded
    if not file and not embedded:
        raise ValueError(
            f"file={str(file)!r}: dtviz ships no controls for {pair!r}; give a CSV with the columns {', '.join(COLUMNS)}"
        )
    clip = embedder("emoji-clip" if embedded else CLIP)
    return list(_listed(Path(file), trained_on, clip) if file else _shipped(trained_on, clip))


def students(pair: str) -> dict[str, str]:
    """The paper's four students of a pair's base: heading -> name of the pair.

    >>> students("emoji-dmd")["LCM"]
    'emoji-lcm'
    """
    family = pair.split("-")[0]
    return {heading: f"{family}-{name}" for name, heading in STUDENTS.items()}


def _listed(file: Path, trained_on: str, clip: Embedder) -> Iterator[Case]:
    """The cases of a CSV; without the column `trained_on` all are the base's."""
    with reading(file):
        table = pd.read_csv(file, keep_default_na=False)
    gone = [name for name in COLUMNS if name not in table.columns]
    if gone:
        raise ValueError(f"{file} lacks the columns {', '.join(gone)}; it has {', '.join(table.columns)}")
    where_from = table.get("trained_on", pd.Series("base", index=table.index))
    for name, rows in table[where_from == trained_on].groupby("control", sort=False):
        where = Path(rows["file"].iloc[0])
        beside, inside = file.parent / where, "/".join(where.parts[2:])
        place = (beside, None) if beside.exists() else ("/".join(where.parts[:2]), inside or None)
        control = load_control(place[0], weight_name=place[1], name=str(name))
        towards = dict(zip(rows["prompt"], rows["towards"], strict=True))
        both = "away" in table.columns and bool((rows["away"] != "").all())
        away = dict(zip(rows["prompt"], rows["away"], strict=True)) if both else {}
        yield Case(control, tuple(towards), tuple(_texts(clip, towards, away)), float(rows["scale"].iloc[0]))


def _shipped(trained_on: str, clip: Embedder) -> Iterator[Case]:
    """The cases of the shipped controls that were trained on the base, or on this student; sliders first, as in the paper."""
    for control in sorted(shipped(), key=lambda control: control.kind):
        told, where = control.facts, control.facts["trained_on"]
        if trained_on != ("base" if where["role"] == "base" else where["pair"]):
            continue
        scale = float(told.get("scale", 1.0))
        if control.kind == "style":
            judge = judges.load("style")
            among = dict.fromkeys(EMOJI_PROMPTS, judge.classes)
            verdict = Verdict("style judge", judge, dict.fromkeys(EMOJI_PROMPTS, told["towards"]), among)
            yield Case(control, EMOJI_PROMPTS, (verdict,), scale)
            continue
        towards, away = (dict(zip(told["prompts"], told[end], strict=True)) for end in ("positive", "negative"))
        judge = judges.load("concept")
        among = {prompt: (towards[prompt], away[prompt]) for prompt in towards}
        verdict = Verdict("concept judge", judge, towards, among)
        prompts = sorted(
            towards, key=lambda prompt, ends=towards: prompt == ends[prompt]
        )  # where there is nothing to move comes last
        yield Case(control, tuple(prompts), (*_texts(clip, towards, away), verdict), scale)


def _texts(clip: Embedder, towards: Mapping[str, str], away: Mapping[str, str]) -> list[Likeness]:
    """The score towards a text of each prompt; and where its other end is known, the contrast of both."""
    name = clip.name.split(":")[0].replace("clip", "CLIP") if ":" in clip.name else clip.name
    ends = [dict(zip(texts, clip.text(list(texts.values())), strict=True)) for texts in (towards, away) if texts]
    measures = [Likeness(f"{name} score", clip.name, ends[0])]
    if len(ends) == 2:
        contrast = {prompt: ends[0][prompt] - ends[1][prompt] for prompt in towards}
        measures.append(Likeness(f"{name} contrast", clip.name, contrast))
    return measures
