"""Controls with the prompts they are tried on and the scores that should rise: the rows of Table 1.

[age, *_] = slider_cases.load("emoji-dmd")
study = Study.open("emoji-dmd", seeds=range(10), measure=False)
scores(study, age.measures[0], age.prompts, "distilled", controls=[age.control.at(age.scale)])  # (prompt, seed)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as memoize
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..controls import Control, effect, outside, shipped
from ..controls import load as load_control
from ..files import reading
from ..metrics.embedders import Embedder, embedder
from ..metrics.factors import FACTORS, named_factors, read_factors
from ..metrics.statistics import LEVEL, mean_interval
from ..models.classifiers import Classifier, load_classifier
from ..models.registry import spec_of
from .paper import EMOJI_PROMPTS
from .study import Study

DISTILLED = {"dmd": "DMD", "lcm": "LCM", "turbo": "Turbo", "lightning": "Lightning"}  # the paper's four, in its order
CLIP = "clip:openai/clip-vit-large-patch14"  # of hub pairs
COLUMNS = ("control", "file", "prompt", "towards", "scale")


@dataclass(frozen=True)
class Measure:
    """A score of images: `score(prompt, features)` takes the embedder's features (n, d) and returns (n,)."""

    name: str
    embedder: str  # "": `score` takes the images (n, 3, height, width) themselves
    score: Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A control with the prompts and the scale at which it is tried, and its scores. The first is the paper's kind."""

    control: Control
    prompts: tuple[str, ...]
    measures: tuple[Measure, ...]
    scale: float = 1.0

    def facts(self) -> dict[str, Any]:
        """Return what a figure records of it, JSON-compatible."""
        facts = {name: getattr(self.control, name) for name in ("name", "kind", "fingerprint")}
        facts |= {"facts": dict(self.control.facts), "prompts": list(self.prompts), "scale": self.scale}
        return facts | {"measures": [measure.name for measure in self.measures]}


def load(pair: str, *, file: str | Path = "", trained_on: str = "base") -> list[Case]:
    """Load the cases of a pair and of the others of its base. Unavailable: a control is not on this machine.

    Args:
        file: CSV with a row per control and prompt, "" for the controls that dtviz ships. Columns: `control` (its name),
            `file` (beside the CSV, or "owner/name/age.safetensors" on the hub), `prompt`, `towards` (a text that the image
            should come nearer to), `scale`, and optionally `away` (the text of the other end) and `trained_on`.
        trained_on: "base", or the pair whose distilled model the controls were trained on ("emoji-dmd").
    """
    embedded, columns = spec_of(pair).embedded, ", ".join(COLUMNS)
    if not file and not embedded:
        raise ValueError(f"no controls are shipped for {pair!r}: give file=, a CSV with the columns {columns}")
    clip = embedder("emoji-clip" if embedded else CLIP)
    return list(_listed(Path(file), trained_on, clip) if file else _shipped(trained_on, clip))


def distilled_pairs(pair: str) -> dict[str, str]:
    """Return heading -> name of the pairs of the paper's four distilled models with the same base."""
    return {heading: f"{pair.split('-')[0]}-{name}" for name, heading in DISTILLED.items()}


def _listed(file: Path, trained_on: str, clip: Embedder) -> Iterator[Case]:
    """Yield the cases of a CSV. Without the column `trained_on` all are of the base."""
    with reading(file):
        table = pd.read_csv(file, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise ValueError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}")
    table = table.assign(away=table.get("away", ""), trained_on=table.get("trained_on", "base"))
    for name, rows in table[table["trained_on"] == trained_on].groupby("control", sort=False):
        path, inside = file.parent / rows["file"].iloc[0], None
        if not path.exists():
            owner, repo, *inside = Path(rows["file"].iloc[0]).parts
            path, inside = f"{owner}/{repo}", "/".join(inside) or None
        control = load_control(path, weight_name=inside, name=str(name))
        towards, away = (dict(zip(rows["prompt"], rows[end], strict=True)) for end in ("towards", "away"))
        measures = _similarities(clip, towards, away if all(away.values()) else {})
        yield Case(control, tuple(towards), tuple(measures), float(rows["scale"].iloc[0]))


def _shipped(trained_on: str, clip: Embedder) -> Iterator[Case]:
    """Yield the cases of the shipped controls of this origin, sliders first, as in the paper."""
    for control in sorted(shipped(), key=lambda control: control.kind):
        facts, origin = control.facts, control.facts["trained_on"]
        if trained_on != ("base" if origin["role"] == "base" else origin["pair"]):
            continue
        if control.kind == "style":
            classifier, prompts = load_classifier("style"), EMOJI_PROMPTS
            truth, among = dict.fromkeys(prompts, facts["towards"]), dict.fromkeys(prompts, classifier.classes)
            measures = [posterior(classifier, truth, among)]
        else:
            truth, away = (dict(zip(facts["prompts"], facts[end], strict=True)) for end in ("positive", "negative"))
            among = {prompt: (truth[prompt], away[prompt]) for prompt in truth}
            prompts = tuple(sorted(truth, key=lambda prompt: prompt == truth[prompt]))  # last those already at the end
            last = readings(facts["positive"][0]) or [posterior(load_classifier("concept"), truth, among)]
            measures = _similarities(clip, truth, away) + last
        yield Case(control, prompts, tuple(measures), float(facts.get("scale", 1.0)))


def posterior(classifier: Classifier, truth: Mapping[str, str], among: Mapping[str, tuple[str, ...]]) -> Measure:
    """Return 100 times a classifier's posterior of the class `truth[prompt]` among the classes `among[prompt]`."""

    def score(prompt: str, features: np.ndarray) -> np.ndarray:
        shares = classifier.posterior(features, among=among[prompt])
        return 100 * shares[:, among[prompt].index(truth[prompt])]

    return Measure(f"{classifier.kind} classifier", classifier.embedder, score)


def readings(text: str) -> list[Measure]:
    """Return a measure for each known factor that a text such as "big rocket" names: 100 if an image has it, else 0."""
    measures = []
    for name, value in named_factors(text).items():
        score = lambda _, images, name=name, value=value: 100.0 * (read_factors(images)[name] == value)  # noqa: E731
        measures.append(Measure(f"read as {FACTORS[name][value]}", "", score))
    return measures


def _similarities(clip: Embedder, towards: Mapping[str, str], away: Mapping[str, str]) -> list[Measure]:
    """Return 100 times the cosine with a text for each prompt, and its contrast with the other end if that is known."""
    name, row = "CLIP" if clip.name.startswith("clip:") else clip.name, list(towards).index
    texts = {"score": clip.text(list(towards.values()))}
    if away:
        texts["contrast"] = texts["score"] - clip.text(list(away.values()))
    return [
        Measure(f"{name} {kind}", clip.name, lambda prompt, features, rows=rows: 100 * features @ rows[row(prompt)])
        for kind, rows in texts.items()
    ]


_embedder = memoize(embedder)
_DIFFERENCES = ("before", "after", "difference", "difference_low", "difference_high")
EFFECT_UNITS = dict.fromkeys(_DIFFERENCES, "100 x cosine, posterior or share")
EFFECT_UNITS |= dict.fromkeys(("percent", "percent_low", "percent_high"), "%")
EFFECT_UNITS |= dict.fromkeys(("p", "transfer", "transfer_low", "transfer_high"), "1")


def scores(study: Study, measure: Measure, prompts: Iterable[str], method: str, **settings: Any) -> np.ndarray:
    """Return a case's measure of the images of every prompt, (prompt, seed)."""
    study = replace(study, embed=_embedder(measure.embedder) if measure.embedder else None)
    inputs = study.features if measure.embedder else study.images
    return np.stack([measure.score(prompt, inputs(prompt, method, **settings)) for prompt in prompts])


def gains(study: Study, measure: Measure, prompts: Sequence[str], method: str, controls: Mapping, **settings: Any):
    """Return mean scores over prompts of each list of controls and "none", label -> (seed,), and a table of their gains.

    The gains are over "none", with 95% t intervals over seeds.
    """
    runs = {**controls, "none": []}
    measured = {label: scores(study, measure, prompts, method, **settings, controls=on) for label, on in runs.items()}
    seeds = {label: values.mean(axis=0) for label, values in measured.items()}
    rows = [{"label": label} | vars(mean_interval(seeds[label] - seeds["none"])) for label in controls]
    return seeds, pd.DataFrame(rows)


def score_controls(study: Study, cases: Iterable[Case], method: str, *, n_prompts: int | None = None) -> pd.DataFrame:
    """Score images with and without each control: `control`, `measure`, `prompt`, `seed`, `original`, `controlled`."""
    tables = []
    for case in cases:
        prompts = case.prompts[:n_prompts]
        index = pd.MultiIndex.from_product([prompts, study.seeds], names=["prompt", "seed"])
        for score in case.measures:
            table = index.to_frame(index=False).assign(control=case.control.name, measure=score.name)
            table["original"] = scores(study, score, prompts, method).ravel()
            controlled = scores(study, score, prompts, method, controls=[case.control.at(case.scale)])
            tables.append(table.assign(controlled=controlled.ravel()))
    return pd.concat(tables, ignore_index=True)


def effects(scored: pd.DataFrame, *, base: str = "base") -> pd.DataFrame:
    """Return `controls.effect` of each control and measure of `score_controls`, with a column `model`.

    Intervals and tests are over seeds if there are fewer than eight prompts: then hardly any p is below .05.
    """
    tables = []
    for (control, measure), part in scored.groupby(["control", "measure"], sort=False):
        count, models = part["prompt"].nunique(), part.groupby("model", sort=False)[["original", "controlled"]]
        pairs = {model: rows.to_numpy().T.reshape(2, count, -1) for model, rows in models}
        table = effect(pairs, base=base, over="prompts" if count >= 8 else "seeds")
        tables.append(pd.DataFrame({"control": control, "measure": measure} | dict(table)))
    return pd.concat(tables, ignore_index=True)


def conclude_effects(table: pd.DataFrame, *, base: str = "base") -> list[str]:
    """Return a sentence for each row of `effects`."""
    lines = []
    for row in table.itertuples():
        words = "no effect is shown" if row.p >= LEVEL else "it rises" if row.difference > 0 else "it falls"
        line = f"{row.control}, {row.measure}, {row.model}: {words} ({row.difference:+.1f}, p = {row.p:.2g})"
        share = f"; {row.transfer:.2f} [{row.transfer_low:.2f}, {row.transfer_high:.2f}] of {base}'s effect"
        lines.append(line if row.model == base else line + share)
    return lines


def pixel_changes(study: Study, case: Case, method: str, *, scale: float, prompts: Iterable[str]) -> dict[str, float]:
    """Return the mean `controls.outside` of a control, `outside`, and of another seed in its place, `another seed`."""
    changes = []
    for prompt in prompts:
        plain = study.images(prompt, method)
        controlled = study.images(prompt, method, controls=[case.control.at(scale)])
        changes.append([outside(plain, images).mean() for images in (controlled, np.roll(plain, 1, axis=0))])
    return dict(zip(("outside", "another seed"), np.mean(changes, axis=0).tolist(), strict=True))
