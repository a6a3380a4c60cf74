"""Stage 7: measure base and student, write the contact sheets.

    python data/recipes/evaluate.py

Concept accuracy: the nearest of all real drawings, in EfficientNet-Lite0 features, is a drawing of the prompt.
"""

from dataclasses import replace

import numpy as np
import torch
from common import MODELS, WORK, arguments, caption, concepts, contact_sheet, record, stage
from diffusers import DDIMScheduler
from tqdm.auto import tqdm

import dtviz
from dtviz import drawings
from dtviz.diversity import mean_interval, mean_pairwise, modes_covered, nearest
from dtviz.embed import embedder

SAMPLERS = {
    "base, guidance 3": {"method": "base", "base_guidance": 3.0},
    "base, guidance 5": {"method": "base", "base_guidance": 5.0},
    "base, guidance 5, DDIM": {"method": "base", "base_guidance": 5.0},
    "student": {"method": "distilled"},
    "hybrid, published": {"method": "hybrid", "handover": "distilled-scheduler"},
    "hybrid, matched sigma": {"method": "hybrid", "handover": "matched-sigma"},
    "skip": {"method": "skip"},
}


def main() -> None:
    args = arguments(seeds=8, every=4)
    pair, embed, real = dtviz.load("emoji-dmd"), embedder("efficientnet-lite0"), drawings.load()
    ddim = DDIMScheduler.from_config(pair.pipeline.scheduler.config)
    variants = {"base, guidance 5, DDIM": replace(pair, base_scheduler=ddim)}
    reference = embed(real.images)
    prompts = [caption(name) for name in concepts()[:: args.every]]
    measures = {}
    for name, settings in SAMPLERS.items():
        right, spread, modes, pictures = [], [], [], []
        for prompt in tqdm(prompts, desc=name, mininterval=10):
            sampler = variants.get(name, pair)
            images = dtviz.decode(
                dtviz.generate(sampler, prompt, seeds=range(args.seeds), **settings), pair, final=True
            )
            features = embed(images)
            right.append(np.mean([real.prompts[row] == prompt for row in nearest(features, reference)]))
            spread.append(mean_pairwise(features).value)
            own = [row for row, other in enumerate(real.prompts) if other == prompt]
            modes.append(modes_covered([real.artists[own[i]] for i in nearest(features, reference[own])]))
            pictures.append(images)
        accuracy, diversity = mean_interval(right), mean_interval(spread)
        measures[name] = {
            "concept_accuracy": [accuracy.value, accuracy.low, accuracy.high],
            "mean_pairwise": [diversity.value, diversity.low, diversity.high],
            "artists": float(np.mean(modes)),
        }
        print(name, measures[name], flush=True)
        sheet = 2 * torch.cat(pictures[:30]) - 1
        contact_sheet(sheet, 2 * args.seeds, WORK / f"sheet_{name.replace(', ', '_').replace(' ', '-')}.png")
        if name in ("base, guidance 5", "student"):
            contact_sheet(
                sheet,
                2 * args.seeds,
                MODELS / ("emoji-base" if name.startswith("base") else "emoji-dmd") / "samples.png",
            )
    record("evaluate", prompts=len(prompts), seeds=args.seeds, samplers=measures)


if __name__ == "__main__":
    with stage("evaluate"):
        main()
