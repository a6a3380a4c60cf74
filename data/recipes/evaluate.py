"""Stage 15: measure the base and every distilled model, painted pictures beside them; write the contact sheets.

    python data/recipes/evaluate.py --seeds 100

The prompts are those of the figures, and so is the cache: `make figures` finds the samples made. Intervals are 95% over
prompts. A distilled model's variety is tested against the base's on the same prompts and seeds, over all and factor by factor.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from classifiers import features, paintings
from common import MODELS, arguments, contact_sheet, record, stage
from tqdm.auto import tqdm
from world import World, caption

import dtviz
from dtviz.experiments.cache import Cache
from dtviz.experiments.paper import EMOJI_PROMPTS
from dtviz.experiments.study import Study
from dtviz.metrics.diversity import entropy, mean_pairwise
from dtviz.metrics.embedders import embedder
from dtviz.metrics.factors import COLOURS, FACTORS, coverage, named_factors, read_factors, variety
from dtviz.metrics.quality import frechet_distance
from dtviz.metrics.statistics import compare, mean_interval
from dtviz.models.classifiers import load_classifier
from dtviz.models.registry import SPECS

TESTED = ("mean_pairwise", *(f"variety_{name}" for name in FACTORS))


@dataclass(frozen=True)
class Pictures:
    """Images (n, 3, 64, 64) in [0, 1] of one prompt, their features by each embedder, and the factors read in them."""

    images: torch.Tensor
    content: np.ndarray
    style: np.ndarray
    clip: np.ndarray
    factors: dict[str, np.ndarray]


class Bench:
    """The painted world, the classifiers, and what images are measured by."""

    def __init__(self, prompts: tuple[str, ...], near: int) -> None:
        self.world, self.prompts, self.near = World(), prompts, near
        self.artist, self.concept = load_classifier("artist"), load_classifier("concept")
        self.embedders = [embedder(name) for name in (self.concept.embedder, self.artist.embedder, "emoji-clip")]
        self.text = dict(zip(prompts, self.embedders[2].text(prompts), strict=True))
        captions = np.array([caption(name) for name in self.world.concept])
        self.rows = {prompt: torch.from_numpy((captions == prompt).nonzero()[0]) for prompt in prompts}

    def look(self, images: torch.Tensor) -> Pictures:
        return Pictures(images, *(embed(images) for embed in self.embedders), read_factors(images))

    def real(self, n: int) -> tuple[list[Pictures], list[Pictures]]:
        """`n` painted pictures a prompt, the drawings in turn, and their reconstructions."""
        pairs = []
        for seed, rows in enumerate(self.rows.values()):
            parts = paintings(self.world, rows[torch.arange(n) % len(rows)], seed=seed)
            pairs.append([self.look(images) for images in torch.cat([both for _, both in parts], dim=1)])
        return tuple(map(list, zip(*pairs, strict=True)))

    def reference(self, n: int) -> np.ndarray:
        """Features of `n` other painted pictures a prompt."""
        rows = torch.cat([rows[torch.arange(n) % len(rows)] for rows in self.rows.values()])
        return features("concept", self.world, rows, seed=len(self.rows))[0]

    def nearest(self, prompt: str, seen: Pictures, *, others: bool = False) -> float:
        """Mean distance of the first images to the nearest training drawing, painted as each image is.

        Painted so: on the colour of the image's border, at the size and place read in it. `others` leaves out the drawing
        that a painted picture is of.
        """
        rows, images = self.rows[prompt], seen.images[: self.near]
        n, drawings = len(images), len(rows)
        sides = images[..., :2], images[..., -2:], images[..., :2, :], images[..., -2:, :]
        factors = {
            name: torch.from_numpy(index[:n]).repeat_interleave(drawings) for name, index in seen.factors.items()
        }
        background = torch.cat([side.flatten(2) for side in sides], dim=2).median(dim=2).values
        painted = self.world.paint(rows.repeat(n), factors | {"rgb": background.repeat_interleave(drawings, dim=0)})
        content = self.embedders[0]((painted / 2 + 0.5).clamp(0, 1)).reshape(n, drawings, -1)
        distance = (1 - np.einsum("nd,nmd->nm", seen.content[:n], content)).clip(0)
        if others:
            distance[np.arange(n), np.arange(n) % drawings] = np.inf
        return float(distance.min(axis=1).mean())

    def measure(self, prompt: str, seen: Pictures) -> dict[str, float]:
        """The measures of one prompt's images."""
        artists = self.artist(seen.style, among=self.world.artist[self.rows[prompt]])
        return {
            "concept_accuracy": self.concept.accuracy(seen.content, prompt),
            "clip_score": 100 * float((seen.clip @ self.text[prompt]).mean()),
            "mean_pairwise": mean_pairwise(seen.content).value,
            **{f"variety_{name}": variety(index, name) for name, index in seen.factors.items()},
            "coverage": coverage(seen.factors),
            "artists": float(np.exp(entropy(artists))),
            "nearest": self.nearest(prompt, seen),
        }

    def captions(self, study: Study, number: int, method: str) -> dict[str, float]:
        """Of one prompt with a size, and with a colour, the share of samples in which it is read."""
        prompt, right = self.prompts[number], {"size": [], "colour": []}
        for said in ({"size": 0}, {"size": 1}, {"colour": number % len(COLOURS)}):
            text = caption(prompt, **said)
            factors = read_factors(samples(study, text, method))
            for name, index in named_factors(text).items():
                right[name].append((factors[name] == index).mean())
        return {f"caption_{name}": float(np.mean(shares)) for name, shares in right.items()}


def samples(study: Study, prompt: str, method: str) -> torch.Tensor:
    """Final images (seed, 3, 64, 64)."""
    return dtviz.decode(study.trace(prompt, method), study.pair, final=True)


def summary(rows: list[dict[str, float]], seen: list[Pictures], reference: np.ndarray) -> dict:
    """Mean and interval over prompts of every measure, and the Fréchet distance of all images to painted ones' features."""
    means = {name: mean_interval([row[name] for row in rows]) for name in rows[0]}
    distance = frechet_distance(np.concatenate([one.content for one in seen]), reference)
    return {name: [e.value, e.low, e.high] for name, e in means.items()} | {"frechet": distance}


def seconds(pair: dtviz.Pair, method: str) -> float:
    """Seconds an image, batches of ten, the second of two."""
    for _ in range(2):
        start = time.perf_counter()
        dtviz.decode(dtviz.generate(pair, "dog face", method=method, seeds=range(10)), pair, final=True)
    return (time.perf_counter() - start) / 10


def main() -> None:
    args = arguments(seeds=100, lora_seeds=20, caption_seeds=10, near=20, prompts=len(EMOJI_PROMPTS))
    prompts = EMOJI_PROMPTS[: args.prompts]
    pairs = {name: dtviz.load(name) for name, spec in SPECS.items() if spec.embedded}
    bench = Bench(prompts, args.near)
    reference, models, tested = bench.reference(args.seeds), {}, {}
    for model, seen in zip(("pictures", "copies"), bench.real(args.seeds), strict=True):
        rows = [
            bench.measure(prompt, one) | {"nearest_other": bench.nearest(prompt, one, others=True)}
            for prompt, one in zip(prompts, seen, strict=True)
        ]
        models[model] = summary(rows, seen, reference)

    whole = [name for name, pair in pairs.items() if not isinstance(pair.distilled, str)]
    jobs = [("emoji-base", pairs[whole[0]], "base")] + [(name, pair, "distilled") for name, pair in pairs.items()]
    for model, pair, method in jobs:
        lora = isinstance(pair.distilled, str)
        study = Study(pair, None, tuple(range(args.lora_seeds if lora else args.seeds)), Cache())
        few = replace(study, seeds=tuple(range(args.caption_seeds)))
        seen, rows = [], []
        for number, prompt in enumerate(tqdm(prompts, desc=model, mininterval=10)):
            seen.append(bench.look(samples(study, prompt, method)))
            rows.append(bench.measure(prompt, seen[-1]) | bench.captions(few, number, method))
        models[model] = summary(rows, seen, reference)
        models[model] |= {"seconds": seconds(pair, method), "seeds": len(study.seeds)}
        tested[model] = {name: [row[name] for row in rows] for name in TESTED}
        print(model, models[model], flush=True)
        if not lora:
            contact_sheet(2 * torch.cat([one.images[:8] for one in seen]) - 1, 16, MODELS / model / "samples.jpg")

    less = {}
    for model in whole:
        comparisons = compare({name: (tested[model][name], tested["emoji-base"][name]) for name in TESTED})
        less[model] = {name: [c.test.value, c.test.low, c.test.high, c.p] for name, c in comparisons.items()}
    counts = {"prompts": len(prompts), "seeds": args.seeds, "lora_seeds": args.lora_seeds, "near": args.near}
    counts |= {"caption_seeds": args.caption_seeds, "threads": torch.get_num_threads()}
    record("evaluate", **counts, models=models, distilled_less_base=less)


if __name__ == "__main__":
    with stage("evaluate"):
        main()
