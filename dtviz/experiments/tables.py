"""Tables of results: write and read them with units, and the measurements that several notebooks make.

table = add_average(measure(study, prompts, METHODS))  # `prompt`, `method`, `value`, `low`, `high`
save(table, "table3.csv", units=dict.fromkeys(("value", "low", "high"), "1 - cosine"))
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from tqdm.auto import tqdm

from ..core.decode import decode_latents
from ..files import data, reading, write_atomic
from ..metrics import concepts
from ..metrics.diversity import entropy, mean_pairwise, vendi
from ..metrics.embedders import embedder
from ..metrics.factors import FACTORS, FactorReader, coverage, decided_at, split_readings, variety
from ..metrics.similarity import fraction_of_commitment
from ..metrics.statistics import mean_interval
from ..models import drawings

if TYPE_CHECKING:
    from .study import Methods, Study

AVERAGE = "Average"
FACTOR_KEYS = ["prompt", "model", "factor"]


def save(table: pd.DataFrame, path: str | Path, *, units: Mapping[str, str]) -> Path:
    """Write a table as CSV and return the path. A unit stands in the column head: `value [1 - cosine]`.

    `units` is column -> unit. A float column without one is a ValueError: give "1" for a pure number.
    """
    if unknown := sorted(set(units) - set(table.columns)):
        raise ValueError(f"units name {unknown}, which are no columns of the table: it has {list(table.columns)}")
    if missing := [name for name in table.columns if table[name].dtype.kind == "f" and name not in units]:
        raise ValueError(f'columns {missing} hold floats and have no unit: give one, "1" for a pure number')
    if bracketed := [text for text in [*table.columns, *units.values()] if re.search(r"[\[\]]", str(text))]:
        raise ValueError(f"columns or units {bracketed} hold a bracket, which marks the unit in the CSV's head")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    headed = table.rename(columns={name: f"{name} [{unit}]" for name, unit in units.items()})
    write_atomic(path, headed.to_csv(index=False, lineterminator="\n").encode(), shared=True)
    return path


def load(path: str | Path) -> pd.DataFrame:
    """Read a table that `save` wrote, without its units. ValueError: the file is no table."""
    # Only an empty cell is missing: "NA" and "null" are words that a prompt may hold.
    with reading(path):
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return table.rename(columns=lambda head: re.sub(r" \[.*\]$", "", head))


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return the values of a long table as prompts x methods, in order of appearance. Twice or missing: ValueError."""
    cells = table.pivot(index="prompt", columns="method", values="value")  # refuses what is there twice
    if missing := cells.isna().stack().loc[lambda gap: gap].index.tolist():
        raise ValueError(f"table lacks the values of {missing}: each method needs each prompt, of one pair")
    return cells.reindex(index=table["prompt"].unique(), columns=table["method"].unique())


def add_average(table: pd.DataFrame) -> pd.DataFrame:
    """Add the prompt "Average" to a long table: each method's mean over prompts with its 95% t interval.

    Where the table has a column `n`, that of the average is the number of prompts.
    """
    if (table["prompt"] == AVERAGE).any():
        raise ValueError(f"table already has the prompt {AVERAGE!r}: give the prompts' rows only")
    means = [{"prompt": AVERAGE, "method": name} | vars(mean_interval(values)) for name, values in wide(table).items()]
    return pd.concat([table, pd.DataFrame(means).drop(columns=[] if "n" in table else "n")], ignore_index=True)


def means(table: pd.DataFrame, by: Sequence[str], column: str = "value") -> pd.DataFrame:
    """Return the mean of a column for each group: `by`, `value`, `low`, `high` (95% t interval) and `n`."""
    groups = table.groupby(list(by), sort=False)[column]
    return pd.DataFrame([dict(zip(by, key, strict=True)) | vars(mean_interval(values)) for key, values in groups])


def differences(table: pd.DataFrame, pairs: Iterable[tuple[str, str]], *, column: str = "value", label: str = ""):
    """Return each prompt's values of pairs of methods for `statistics.compare`: "<label><a> - <b>" -> (a, b)."""
    values = wide(table[table["prompt"] != AVERAGE].assign(value=table[column]))
    return {f"{label}{a} - {b}": (values[a], values[b]) for a, b in pairs}


def plus_minus(estimates: pd.DataFrame, *, digits: int = 3, sign: str = "") -> list[str]:
    """Return texts such as "0.337 ±0.020" of the columns `value`, `low` and `high`. sign="+" marks positive values."""
    columns = zip(estimates["value"], estimates["low"], estimates["high"], strict=True)
    return [f"{value:{sign}.{digits}f} ±{(high - low) / 2:.{digits}f}" for value, low, high in columns]


def measure(study: Study, prompts: Sequence[str], methods: Methods, *, classifier=None, clip=None, artist=None):
    """Measure each prompt and method: `value` (mean pairwise distance), `low`, `high`, `n`, `accuracy`, `clip`, `nfe`.

    Args:
        classifier: names the concept, for `accuracy`, which is nan without it.
        clip: the study with an embedder of texts, for `clip`, 100 times the mean cosine of image and prompt.
        artist: classifier of the artists of an embedded pair, for the columns of `diversity_by_factor`.
    """
    texts, rows = clip.embed.text(list(prompts)) if clip else [None] * len(prompts), []
    reader = replace(study, embed=FactorReader(embedder(artist.embedder))) if artist else None
    for prompt, text in zip(tqdm(prompts, desc="prompts"), texts, strict=True):
        for label, (method, settings) in methods.items():
            features = study.features(prompt, method, **settings)
            row = {"prompt": prompt, "method": label} | vars(mean_pairwise(features))
            row["accuracy"] = classifier.accuracy(features, prompt) if classifier else np.nan
            if clip:
                row["clip"] = 100 * (clip.features(prompt, method, **settings) @ text).mean()
            if artist:
                among = drawings.load().of(prompt).artists
                row |= diversity_by_factor(reader.features(prompt, method, **settings), artist, among)
            rows.append(row | {"nfe": sum(study.ran(method, **settings)["nfe"].values())})
    return pd.DataFrame(rows)


def diversity_by_factor(readings: np.ndarray, artist, among: Sequence[str]) -> dict[str, float]:
    """Return each factor's `variety`, their `coverage`, and the effective number of `artists` that the classifier names.

    readings: (n, 3 + d) by a `FactorReader`, of one prompt's images. among: its artists.
    """
    known, features = split_readings(readings)
    row = {name: variety(labels, name) for name, labels in known.items()} | {"coverage": coverage(known)}
    return row | {"artists": float(np.exp(entropy(artist(features, among=among))))}


def missing_concepts(posteriors, asked, alone, *, classes, seeds, absent: float) -> pd.DataFrame:
    """List the concepts that a final image lacks, and how clearly x0 showed each on the way (Figure 3).

    Args:
        posteriors: (model, prompt) -> (step + 1, seed, class), of each step's x0 and last of the final image.
        asked, alone: prompt of two concepts -> their `ConceptPair`, and concept -> its own prompt.
        classes, seeds: of the posteriors. absent: posterior up to which a final image lacks a concept.

    Columns: `source` is the image's prompt, `step` counts from 1, `final` is the concept of the final image.
    """
    rows = []
    for model, prompt in itertools.product(dict.fromkeys(model for model, _ in posteriors), asked):
        first, second, others = asked[prompt]
        images = [("asked for", prompt, name) for name in (first, second)]
        images += [("not asked for, same images", prompt, name) for name in others]
        images += [("not asked for, own prompt", alone[a], b) for a, b in ((first, second), (second, first))]
        for condition, source, concept in images:
            *steps, final = posteriors[model, source]
            level, step = concepts.clearest_steps(steps)
            column = classes.index(concept)
            for i in np.flatnonzero(final[:, column] <= absent):
                row = (model, prompt, condition, concept, seeds[i], source, level[i, column])
                rows.append((*row, step[i, column] + 1, classes[final[i].argmax()]))
    names = ["model", "prompt", "condition", "concept", "seed", "source", "level", "step", "final"]
    return pd.DataFrame(rows, columns=names)


def case_images(study: Study, classifier: Any, case: Any, *, columns: int) -> dict[str, Any]:
    """Return the images of a row of `missing_concepts` for `plot.plot_case`.

    The box is where hiding a patch of x0 lowers the log posterior of the missing concept most.
    """
    trace, step, i = study.trace(case.source, case.model), case.step - 1, study.seeds.index(case.seed)
    steps = np.unique(np.linspace(0, len(trace.sigmas) - 1, columns).round().astype(int))
    steps[np.abs(steps - step).argmin()] = step
    *x0, final = decode_latents(torch.cat([trace.x0[steps, i], trace.final[[i]]]), study.pair).numpy()
    image = x0[list(steps).index(step)]
    windows = concepts.occlusion_windows(*image.shape[1:], size=image.shape[-1] // 4, stride=image.shape[-1] // 8)
    features = study.features_of(np.concatenate([image[None], concepts.occlude(image, windows)]))
    logs = np.log(classifier(features[None], sigmas=[trace.sigmas[step]])[0, :, classifier.classes.index(case.concept)])
    box = concepts.occlusion_box(logs[0] - logs[1:], windows, shape=image.shape[1:])
    return {"x0": x0, "final": final, "steps": steps, "mark": step, "box": box, "columns": columns}


def with_errors(features: Sequence[np.ndarray]) -> np.ndarray:
    """Return a copy of features (prompt, seed, d), where every fourth sample is one of another prompt."""
    if len(features) < 2:
        raise ValueError(f"features of {len(features)} prompt: at least 2 are needed, errors are of other prompts")
    mixed = np.array(features)
    for row in range(2, mixed.shape[1], 4):
        shift = 1 + (row // 4) % (len(mixed) - 1)
        mixed[:, row] = np.roll(mixed[:, row], shift, axis=0)
    return mixed


def semantic_samples(study: Study, reader: Study, prompts: Sequence[str], methods: Methods):
    """Return prompt -> label -> features by the embedders of both studies, each (seed, d).

    Labels are the methods, and "errors": `with_errors` of "distilled".
    """
    samples = {prompt: {} for prompt in prompts}
    for prompt, labels in tqdm(samples.items(), desc="prompts"):
        for label, (method, settings) in methods.items():
            labels[label] = [part.features(prompt, method, **settings) for part in (study, reader)]
    mixed = [with_errors([labels["distilled"][i] for labels in samples.values()]) for i in range(2)]
    for labels, *errors in zip(samples.values(), *mixed, strict=True):
        labels["errors"] = errors
    return samples


def measure_semantics(reader: Study, samples, *, artist=None, concept=None):
    """Measure `semantic_samples`. Return a table by prompt and method, and one by attribute as well.

    `told` is exp of the mutual information of image and value. Attributes of embedded pairs are the artist, by a classifier,
    and the factors, by a `FactorReader`. Of hub pairs the reader's CLIP reads those of `data/prompts/attributes.csv`.
    """
    texts, scale = load(data("prompts") / "attributes.csv"), 0 if artist else np.float64(reader.embed.logit_scale)
    rows, attributes = [], []
    for prompt, labels in samples.items():
        among = drawings.load().of(prompt).artists if artist else ()
        values = texts[texts["prompt"] == prompt].groupby("attribute", sort=False)["value"]
        encoded = {} if artist else {name: reader.embed.text(list(value)) for name, value in values}
        for label, (features, read) in labels.items():
            posteriors = {name: softmax(scale * read @ text.T, axis=1) for name, text in encoded.items()}
            keys = {"prompt": prompt, "method": label}
            row = keys | {"distance": mean_pairwise(features).value, "vendi": vendi(features)}
            if artist:
                known, style = split_readings(read)
                posteriors = {name: np.eye(len(FACTORS[name]))[value] for name, value in known.items()}
                posteriors["artist"] = artist.posterior(style, among=among)
                row |= diversity_by_factor(read, artist, among) | {"accuracy": concept.accuracy(features, prompt)}
            told = {name: np.exp(concepts.mutual_information(p)) for name, p in posteriors.items()}
            rows.append(row | {"told": np.mean([*told.values()])})
            parts = ({"attribute": name, "values": p.shape[1], "told": told[name]} for name, p in posteriors.items())
            attributes += [keys | part for part in parts]
    return pd.DataFrame(rows), pd.DataFrame(attributes)


def agreement(table: pd.DataFrame, columns: Sequence[str], *, other: str) -> pd.DataFrame:
    """Return Spearman's correlation of columns with another: `value`, `low`, `high`, `n` and `over prompts`.

    `value` is the mean over prompts of the one over methods, `over prompts` the median over methods of the one over prompts.
    """
    groups = (table.groupby(by, sort=False)[list(columns)] for by in ("prompt", "method"))
    methods, prompts = (group.corr(method="spearman")[other].unstack() for group in groups)
    names = [name for name in columns if methods[name].notna().any()]
    rows = [vars(mean_interval(methods[name].dropna())) | {"over prompts": prompts[name].median()} for name in names]
    return pd.DataFrame(rows, index=names)


def read_steps(study: Study, prompt: str, method: str, *, artist: Any) -> dict[str, np.ndarray]:
    """Return the labels (step, seed) of each known factor and of the artist, read from x0; the last are the final image's.

    `study.embed` is a `FactorReader` of the embedder of the classifier `artist`, which chooses among the prompt's artists.
    """
    x0, final = (study.features(prompt, method, steps=steps) for steps in (True, False))
    labels, features = split_readings(np.concatenate([x0[:-1], final[None]]))
    names = drawings.load().of(prompt).artists
    posteriors = artist.posterior(features.reshape(-1, features.shape[-1]), among=names)
    return labels | {"artist": posteriors.argmax(axis=1).reshape(features.shape[:2])}


def decisions(labels: Mapping[tuple[str, str, str], np.ndarray]) -> pd.DataFrame:
    """Return how many samples are decided after each step. labels: (prompt, model, factor) -> (step, seed) of `read_steps`.

    Columns: the keys, `step`, `fraction` of the steps done, and shares of the samples: `agreement`, whose label is the final
    one; `chance`, the same with another seed's final label; and `decided`, whose label does not change any more.
    """
    parts = []
    for key, read in labels.items():
        steps, same = np.arange(1, len(read) + 1), read[:, :, None] == read[-1]
        others = same[:, ~np.eye(read.shape[1], dtype=bool)]  # (step, two different seeds)
        part = {"step": steps, "fraction": steps / len(read), "agreement": (read == read[-1]).mean(axis=1)}
        part |= {"chance": others.mean(axis=1), "decided": (decided_at(read) <= steps[:, None]).mean(axis=1)}
        parts.append(pd.DataFrame(dict(zip(FACTOR_KEYS, key, strict=True)) | part))
    return pd.concat(parts, ignore_index=True)


def decision_steps(decided: pd.DataFrame) -> pd.DataFrame:
    """Return shares of the steps for each prompt, model and factor of `decisions`.

    Columns: `mean` step after which a sample is decided, `first` step, and `base`: the share of the base's steps after which
    it has decided as many samples as the model after its first.
    """
    rows, groups = [], decided.groupby(FACTOR_KEYS, sort=False)["decided"]
    left = {key: 1 - part.to_numpy() for key, part in groups}  # shares not yet decided after each step
    for (prompt, model, factor), shares in left.items():
        base = fraction_of_commitment(left[prompt, "base", factor], shares[0])
        # mean step = sum of P(step > s) over s = 0, 1, ...
        rows.append((prompt, model, factor, (1 + shares.sum()) / len(shares), 1 / len(shares), base))
    return pd.DataFrame(rows, columns=[*FACTOR_KEYS, "mean", "first", "base"])
