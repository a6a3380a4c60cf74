"""An ablation: what the schedule's shift does to the distilled model, and to the hybrid.

    python data/recipes/dmd.py --steps 1300 --shift 1       # SDXL's own noise levels
    python data/recipes/dmd.py --steps 1300 --shift 2.5
    python data/recipes/shift.py

Noise of one sigma destroys more of a small latent (see `commitment.py`), so where the distilled model's second step lies decides how
much of an image is settled when it takes over. Writes `shift.csv` beside this recipe.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from common import SHIFT, WORK, arguments, stage
from diffusers import UNet2DConditionModel
from distil import shifted
from tqdm.auto import tqdm

import dtviz
from dtviz.experiments.interventions import edit_named
from dtviz.experiments.paper import EMOJI_PROMPTS
from dtviz.metrics.diversity import mean_pairwise
from dtviz.metrics.embedders import embedder
from dtviz.metrics.statistics import compare, mean_interval
from dtviz.models import classifiers

PUBLISHED, MATCHED = {"handover": "distilled-scheduler"}, {"handover": "matched-sigma"}
METHODS = {
    "distilled": ("distilled", {}),
    "skip": ("skip", {}),
    "hybrid": ("hybrid", PUBLISHED),
    "mean x0 σ": ("hybrid", MATCHED | {"edit_x0": edit_named("mean")}),
    "hybrid σ": ("hybrid", MATCHED),
    "hybrid σ, k = 2": ("hybrid", MATCHED | {"k": 2}),
}


def main() -> None:
    args = arguments(seeds=10)
    shipped, embed, classifier = (
        dtviz.load("emoji-dmd"),
        embedder("efficientnet-lite0"),
        classifiers.load_classifier("concept"),
    )
    found = {path.name.removeprefix("dmd-shift-"): path for path in sorted(WORK.glob("dmd-shift-*")) if path.is_dir()}
    pairs = {f"{SHIFT:g}, shipped": shipped}
    for shift, path in found.items():
        student = UNet2DConditionModel.from_pretrained(path).eval().requires_grad_(False)
        pairs[shift] = replace(shipped, distilled=student, timesteps=shifted(float(shift)), fingerprint="")
    rows = []
    for shift, pair in pairs.items():
        for prompt in tqdm(EMOJI_PROMPTS, desc=f"shift {shift}"):
            for name, (method, settings) in METHODS.items():
                trace = dtviz.generate(pair, prompt, method=method, seeds=range(args.seeds), **settings)
                features = embed(dtviz.decode(trace, pair, final=True))
                right = classifier.accuracy(features, prompt)
                rows.append((shift, pair.timesteps[1], prompt, name, mean_pairwise(features).value, right))
    table = pd.DataFrame(rows, columns=["shift", "second_timestep", "prompt", "method", "distance", "accuracy"])
    table.to_csv(Path(__file__).with_name("shift.csv"), index=False, float_format="%.4f")
    for shift, part in table.groupby("shift"):
        distance = part.pivot(index="prompt", columns="method", values="distance")
        for name in METHODS:
            value, right = mean_interval(distance[name]), part[part["method"] == name]["accuracy"].mean()
            print(f"{shift} {name}: {value.value:.3f} [{value.low:.3f}, {value.high:.3f}], accuracy {right:.3f}")
        compared = [("hybrid", "skip"), ("hybrid", "distilled"), ("hybrid σ", "mean x0 σ"), ("hybrid σ", "hybrid")]
        tests = compare({f"{a} - {b}": (distance[a], distance[b]) for a, b in compared})
        print("\n".join(f"{shift} {test}" for test in tests.values()))


if __name__ == "__main__":
    with stage("shift"):
        main()
