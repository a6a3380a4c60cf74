"""Stage 15: measure the base and every distilled model, the real drawings beside them; write the contact sheets.

    python data/recipes/evaluate.py --seeds 100

The prompts are those of the figures, and so is the cache: `make figures` finds the samples made. Intervals are 95% over
prompts; a distilled model's diversity is tested against the base's on the same prompts and seeds.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from common import MODELS, arguments, contact_sheet, record, stage
from tqdm.auto import tqdm

import dtviz
from dtviz.core.decode import reconstruct
from dtviz.experiments.cache import Cache
from dtviz.experiments.paper import EMOJI_PROMPTS
from dtviz.experiments.study import Study
from dtviz.metrics.diversity import entropy, mean_pairwise, modes_covered
from dtviz.metrics.embedders import embedder
from dtviz.metrics.quality import frechet_distance
from dtviz.metrics.statistics import compare, mean_interval
from dtviz.models import classifiers, drawings
from dtviz.models.registry import SPECS


@dataclass(frozen=True)
class Seen:
    """Images of one prompt, by each embedder."""

    content: np.ndarray
    style: np.ndarray
    clip: np.ndarray


class Bench:
    """The real drawings, as they are and through the autoencoder, the classifiers, and what images are measured by."""

    def __init__(self, pair: dtviz.Pair) -> None:
        self.real, self.artist, self.concept = (
            drawings.load(),
            classifiers.load_classifier("artist"),
            classifiers.load_classifier("concept"),
        )
        self.embedders = [embedder(name) for name in (self.concept.embedder, self.artist.embedder, "emoji-clip")]
        self.text = dict(zip(EMOJI_PROMPTS, self.embedders[2].text(EMOJI_PROMPTS), strict=True))
        images = {prompt: self.real.of(prompt).images for prompt in EMOJI_PROMPTS}
        self.drawn = {prompt: self.look(those) for prompt, those in images.items()}
        self.copies = {prompt: self.look(reconstruct(those, pair)) for prompt, those in images.items()}

    def look(self, images) -> Seen:
        return Seen(*(embed(images) for embed in self.embedders))

    def samples(self, study: Study, prompt: str, method: str) -> Seen:
        return Seen(*(replace(study, embed=embed).features(prompt, method) for embed in self.embedders))

    def measure(self, prompt: str, seen: Seen, *, real: int = 0) -> dict[str, float]:
        """One prompt's images. `real`: they are the drawings, and count as if a sampler had drawn each so often."""
        artists = self.real.of(prompt).artists
        near = seen.content @ self.copies[prompt].content.T
        found = [artists[row] for row in near.argmax(axis=1)]
        judged = self.artist(seen.style, among=artists)
        if real:
            np.fill_diagonal(near, -1)  # the nearest other drawing
        return {
            "concept_accuracy": self.concept.accuracy(seen.content, prompt),
            "clip_score": 100 * float((seen.clip @ self.text[prompt]).mean()),
            "mean_pairwise": mean_pairwise(seen.content).value,
            "artists": modes_covered(found),
            "effective_artists": np.exp(entropy((real or 1) * found)),
            "judged_artists": np.exp(entropy((real or 1) * judged)),
            "nearest_drawing": float(1 - near.max(axis=1).mean()),
        }

    def summary(self, rows: list[dict[str, float]], seen: Iterable[Seen]) -> dict:
        """Mean and interval over prompts of every measure; the Fréchet distance of all images to all drawings."""
        made = {name: mean_interval([float(row[name]) for row in rows]) for name in rows[0]}
        content = np.concatenate([one.content for one in seen])
        real = np.concatenate([one.content for one in self.drawn.values()])
        return {name: [e.value, e.low, e.high] for name, e in made.items()} | {
            "frechet": frechet_distance(content, real)
        }


def seconds(pair: dtviz.Pair, method: str) -> float:
    """Seconds an image, batches of ten, the second of two."""
    for _ in range(2):
        start = time.perf_counter()
        dtviz.decode(dtviz.generate(pair, "dog face", method=method, seeds=range(10)), pair, final=True)
    return (time.perf_counter() - start) / 10


def main() -> None:
    args = arguments(seeds=100, lora_seeds=20)
    pairs = {name: dtviz.load(name) for name, spec in SPECS.items() if spec.embedded}
    first = next(iter(pairs.values()))
    bench, models = Bench(first), {}
    for name, real in (("drawings", bench.drawn), ("copies", bench.copies)):
        rows = [bench.measure(prompt, seen, real=args.seeds) for prompt, seen in real.items()]
        models[name] = bench.summary(rows, real.values())

    diversity: dict[str, list[float]] = {}
    jobs = [("emoji-base", first, "base")] + [(name, pair, "distilled") for name, pair in pairs.items()]
    for model, pair, method in jobs:
        count = args.lora_seeds if isinstance(pair.distilled, str) else args.seeds
        study = Study(pair, None, tuple(range(count)), Cache())
        found = [bench.samples(study, prompt, method) for prompt in tqdm(EMOJI_PROMPTS, desc=model, mininterval=10)]
        rows = [bench.measure(prompt, seen) for prompt, seen in zip(EMOJI_PROMPTS, found, strict=True)]
        models[model] = bench.summary(rows, found) | {"seconds": seconds(pair, method), "seeds": count}
        diversity[model] = [row["mean_pairwise"] for row in rows]
        print(model, models[model], flush=True)
        if not isinstance(pair.distilled, str):
            few = replace(study, seeds=tuple(range(8)))
            pictures = [torch.from_numpy(few.images(prompt, method)) for prompt in EMOJI_PROMPTS[:30]]
            contact_sheet(2 * torch.cat(pictures) - 1, 16, MODELS / model / "samples.jpg")

    whole = [name for name, pair in pairs.items() if not isinstance(pair.distilled, str)]
    compared = compare({name: (diversity[name], diversity["emoji-base"]) for name in whole})
    less = {name: [one.test.mean, one.test.low, one.test.high, one.p] for name, one in compared.items()}
    counts = {"prompts": len(EMOJI_PROMPTS), "seeds": args.seeds, "lora_seeds": args.lora_seeds}
    counts["threads"] = torch.get_num_threads()
    record("evaluate", **counts, models=models, student_less_base=less)


if __name__ == "__main__":
    with stage("evaluate"):
        main()
