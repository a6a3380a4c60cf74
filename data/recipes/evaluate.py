"""Stage 10: measure the base and every student, the real drawings beside them; write the contact sheets.

    python data/recipes/evaluate.py

Every fourth concept is a prompt. Concept accuracy: the nearest of all real drawings, in EfficientNet-Lite0 features, is a
drawing of the prompt. Intervals are 95% over prompts; a student's diversity is tested against the base's on the same ones.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from common import MODELS, arguments, caption, concepts, contact_sheet, record, stage
from diffusers import DDIMScheduler
from tqdm.auto import tqdm

import dtviz
from dtviz import drawings
from dtviz.diversity import holm, mean_interval, mean_pairwise, modes_covered, nearest, paired_test
from dtviz.embed import embedder
from dtviz.pairs import SPECS
from dtviz.quality import frechet_distance

BASE = {
    "base, guidance 5": {"method": "base", "base_guidance": 5.0},
    "base, guidance 3": {"method": "base", "base_guidance": 3.0},
    "base, guidance 5, DDIM": {"method": "base", "base_guidance": 5.0},
}
STUDENT = {
    "student": {"method": "distilled"},
    "hybrid, published": {"method": "hybrid", "handover": "distilled-scheduler"},
    "hybrid, matched sigma": {"method": "hybrid", "handover": "matched-sigma"},
    "skip": {"method": "skip"},
}


class Bench:
    """The prompts, their real drawings, and what images are measured by."""

    def __init__(self, every: int) -> None:
        self.real, self.prompts = drawings.load(), [caption(name) for name in concepts()[::every]]
        self.embed, self.clip = embedder("efficientnet-lite0"), embedder("emoji-clip")
        self.reference = self.embed(self.real.images)
        self.text = dict(zip(self.prompts, self.clip.text(self.prompts), strict=True))
        self.own = {p: [i for i, other in enumerate(self.real.prompts) if other == p] for p in self.prompts}
        self.drawn = np.concatenate([self.reference[rows] for rows in self.own.values()])

    def measure(self, prompt: str, images) -> dict:
        """One prompt's images, and their features."""
        features, own = self.embed(images), self.own[prompt]
        return {
            "concept_accuracy": np.mean([self.real.prompts[i] == prompt for i in nearest(features, self.reference)]),
            "clip_score": 100 * float((self.clip(images) @ self.text[prompt]).mean()),
            "mean_pairwise": mean_pairwise(features).value,
            "artists": modes_covered([self.real.artists[own[i]] for i in nearest(features, self.reference[own])]),
            "features": features,
        }

    def summary(self, rows: list[dict]) -> dict:
        """Mean and interval over prompts of every measure; the Fréchet distance of all images to all drawings."""
        made = {name: mean_interval([float(row[name]) for row in rows]) for name in rows[0] if name != "features"}
        measures = {name: [e.value, e.low, e.high] for name, e in made.items()}
        return measures | {"frechet": frechet_distance(np.concatenate([r["features"] for r in rows]), self.drawn)}


def main() -> None:
    args = arguments(seeds=8, every=4)
    bench = Bench(args.every)
    pairs = {name: dtviz.load(name) for name, spec in SPECS.items() if spec.embedded}
    first = next(iter(pairs.values()))
    ddim = DDIMScheduler.from_config(first.pipeline.scheduler.config, clip_sample=False)  # by default it clips latents
    jobs = [
        ("emoji-base", name, replace(first, base_scheduler=ddim) if "DDIM" in name else first, how)
        for name, how in BASE.items()
    ]
    jobs += [(name, sampler, pair, how) for name, pair in pairs.items() for sampler, how in STUDENT.items()]

    drawn = bench.summary([bench.measure(prompt, bench.real.of(prompt).images) for prompt in bench.prompts])
    measures: dict[str, dict] = {"drawings": {"drawn": drawn}}
    diversity: dict[tuple[str, str], list[float]] = {}
    for model, sampler, pair, how in jobs:
        rows, pictures, seconds = [], [], []
        for prompt in tqdm(bench.prompts, desc=f"{model}, {sampler}", mininterval=10):
            start = time.perf_counter()
            images = dtviz.decode(dtviz.generate(pair, prompt, seeds=range(args.seeds), **how), pair, final=True)
            seconds.append((time.perf_counter() - start) / args.seeds)
            rows.append(bench.measure(prompt, images))
            pictures.append(images)
        measures.setdefault(model, {})[sampler] = bench.summary(rows) | {"seconds": float(np.median(seconds))}
        diversity[model, sampler] = [row["mean_pairwise"] for row in rows]
        print(model, sampler, measures[model][sampler], flush=True)
        if sampler in ("base, guidance 5", "student"):
            contact_sheet(2 * torch.cat(pictures[:30]) - 1, 2 * args.seeds, MODELS / model / "samples.jpg")

    base = diversity["emoji-base", "base, guidance 5"]
    tests = {name: paired_test(diversity[name, "student"], base) for name in pairs}
    adjusted = holm([test.p for test in tests.values()])
    less = {n: [t.mean, t.low, t.high, float(p)] for (n, t), p in zip(tests.items(), adjusted, strict=True)}
    record("evaluate", prompts=len(bench.prompts), seeds=args.seeds, models=measures, student_less_base=less)


if __name__ == "__main__":
    with stage("evaluate"):
        main()
