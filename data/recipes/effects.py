"""Stage 14: what the sliders do, on the base and on every distilled model; writes the card of `data/controls`.

    python data/recipes/effects.py --seeds 10 --base-steps 20

Every slider at five scales on its own prompts. Samples are kept in the cache, so that a stage which was killed goes on.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from common import DATA, arguments, stage
from tqdm.auto import tqdm

import dtviz
from dtviz.controls import effect, shipped, sweep
from dtviz.experiments import slider_cases as cases
from dtviz.experiments.study import Study

SCALES = (-2.0, -1.0, 0.0, 1.0, 2.0)
PARTS = ((0.0, 1.0), (-2.0, 2.0))  # what is compared: switched on, and end to end
BASE = "emoji-dmd"  # a pair that has the base
CONTROLS = DATA / "controls"


def scores(study: Study, case: cases.Case, method: str) -> dict[str, np.ndarray]:
    """Every measure of a slider at every scale, (scale, prompt, seed)."""
    table = {}
    for measure in case.measures:
        looked = replace(study, embed=dtviz.embedder(measure.embedder))
        rows = [
            [measure.score(p, looked.features(p, method, controls=[case.control.at(scale)])) for p in case.prompts]
            for scale in SCALES
        ]
        table[measure.name] = np.array(rows)
    return table


def main() -> None:
    args = arguments(seeds=10, base_steps=20)
    models = {"base": (BASE, "base")} | {name: (name, "distilled") for name in cases.distilled_pairs(BASE).values()}
    sliders = [case for case in cases.load(BASE) if case.control.kind == "slider"]
    sweeps, effects = [], []
    measured: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for model, (name, method) in tqdm(models.items(), desc="models"):
        study = Study.open(name, seeds=range(args.seeds), measure=False, base_steps=args.base_steps)
        for case in sliders:
            for measure, of in scores(study, case, method).items():
                measured.setdefault((case.control.name, measure), {})[model] = of
                whole = sweep(SCALES, of)
                row = {"slider": case.control.name, "measure": measure, "model": model, "monotone": whole.monotone}
                row |= {f"{scale:+g}": value for scale, value in zip(SCALES, whole.table["value"], strict=True)}
                row |= {"spearman": whole.spearman.value, "spearman_low": whole.spearman.low}
                sweeps.append(row | {"spearman_high": whole.spearman.high, "p": whole.p, "rising": whole.rising})
    for (slider, measure), of in measured.items():
        for low, high in PARTS:
            table = effect({model: (one[SCALES.index(low)], one[SCALES.index(high)]) for model, one in of.items()})
            effects.append(table.assign(slider=slider, measure=measure, low=low, high=high))
    write(pd.DataFrame(sweeps), pd.concat(effects), args.seeds, args.base_steps)


CARD = """# The embedded pairs' controls

Small changes of `emoji-base`, trained on it and attached to its distilled models, or the other way round (`emoji-*/`).
One safetensors file each, float16, which `dtviz.controls.load` and diffusers' own `load_lora_weights` read; its header holds
prompts, settings, licence and the network it was trained on. `dtviz.controls.shipped()` lists them.

```python
pair = dtviz.load("emoji-dmd")
with dtviz.controls.attach(pair, dtviz.controls.load("smile"), scale=1.5):
    dtviz.generate(pair, "man", method="distilled")
```

| control | kind | trained on | trained with | layers, rank | iterations x batch, lr | loss at the end | numbers | licence |
|---|---|---|---|---|---|---|---|---|
{files}

**Sliders** (Concept Sliders, eta 1; rollouts of 8 steps with guidance 3 on the base, 4 steps on a distilled model) are trained
from texts alone, from one concept of the base towards another: one takes 2.5 minutes of processor time, one thread. Useful scales: -2 to 2.

**Styles** (LoRA, the denoiser's own loss at uniform timesteps, one caption in ten left out) are trained on drawings of one artist
in no model's training set, of the concepts of `concepts.txt` that the pairs are *not* studied on. The scale in the header, {scale:g}, was chosen by
eye: at 1 many drawings are torn. In trials of 300 iterations at rank 8, neither keys and values of the cross-attention alone (Custom
Diffusion's layers) nor all attention drew outlines on this base, which has memorised its drawings. Convolutions were needed. At 0.75 on the base (8 studied
prompts x 10 seeds, 10 steps) the style classifier's mean posterior for the style rises from 0 to 16% (`openmoji`), 0 to 12% (`high-contrast`) and 8 to
32% (`emojione-v1`), while concept accuracy falls from 1.00 to .49, .66 and .71. On the distilled models:
`notebooks/table1_control_transfer.ipynb`.

## What the sliders do

Scale 2 against scale -2, {seeds} seeds of each of the slider's prompts, the base in {base_steps} steps; 95% intervals over prompts, which are few
(4 to 7), sign-flip p Holm-corrected for the five models of a slider: with so few prompts p cannot reach .05. Scale 1 against 0 is in
`effects.csv`. Half of the prompts are at an end of the scale already, and no difference from 0 to 1 is shown for any model. *Contrast*: 100 x (cosine with the text of the positive end less that with the negative end) in
`emoji-clip`. Transfer: the distilled model's difference over the base's, by Fieller.

| slider | model | difference in contrast | p | transfer |
|---|---|---|---|---|
{effects}

Over the scales -2, -1, 0, 1, 2, the means of contrast, and of the concept classifier's posterior for the positive end (in %, among both
ends); *monotone*: the mean rises at every step; rank correlation of score and scale within a seed, 95% over prompts.

| slider | model | contrast | monotone | rank correlation | classifier | monotone |
|---|---|---|---|---|---|---|
{sweeps}

## Data, licences, attributions

Sliders need no images; their weights are released under the MIT licence, as are those made from Fluent Emoji High Contrast (MIT).
The weights of `openmoji` and `emojione-v1` are made from share-alike drawings and are released under CC BY-SA 4.0 too.
This does not apply to the rest of dtviz.

| control | drawings | artist | licence of the drawings |
|---|---|---|---|
| `openmoji` | OpenMoji (hfg-gmuend/openmoji), npm `@iconify-json/openmoji` | OpenMoji, the open-source emoji and icon project | CC BY-SA 4.0 |
| `high-contrast` | Fluent Emoji High Contrast (microsoft/fluentui-emoji), npm `@iconify-json/fluent-emoji-high-contrast` | Microsoft Corporation | MIT |
| `emojione-v1` | Emoji One v1 (joypixels/emojione-legacy), npm `@iconify-json/emojione-v1` | Emoji One | CC BY-SA 4.0 |

Rendered at 64x64 on white. Made by `data/recipes/controls.py`, measured by `data/recipes/effects.py`.
"""


def write(sweeps: pd.DataFrame, effects: pd.DataFrame, seeds: int, base_steps: int) -> None:
    """The card, and the numbers in full beside it."""
    sweeps.to_csv(CONTROLS / "sweeps.csv", index=False, float_format="%.4g")
    effects.to_csv(CONTROLS / "effects.csv", index=False, float_format="%.4g")
    files = []
    for control in shipped():
        facts, numbers = control.facts, sum(tensor.numel() for tensor in control.tensors.values())
        on = facts["trained_on"]["pair"] if facts["trained_on"]["role"] == "distilled" else "emoji-base"
        ends = f"{facts['positive'][0]} / {facts['negative'][0]}" if control.kind == "slider" else ""
        source = ends or f"{facts['images']['number']} drawings of {facts['towards']}"
        how = f"{facts['iterations']} x {facts['batch_size']}, {facts['lr']:g} | {facts['loss']:.3f}"
        size = f"{len(control.modules)}, {facts['rank']} | {how} | {numbers}"
        files.append(f"| {control.name} | {control.kind} | {on} | {source} | {size} | {facts['licence']} |")
    contrast = effects[(effects["measure"] == "emoji-clip contrast") & (effects["high"] == SCALES[-1])]
    changes = [
        f"| {row.slider} | {row.model} | {row.difference:+.1f} [{row.difference_low:+.1f}, {row.difference_high:+.1f}] | {row.p:.2g} | "
        + ("|" if np.isnan(row.transfer) else f"{row.transfer:.2f} [{row.transfer_low:.2f}, {row.transfer_high:.2f}] |")
        for row in contrast.itertuples()
    ]
    lines = []
    for (slider, model), of in sweeps.groupby(["slider", "model"], sort=False):
        of = of.set_index("measure")
        two = of.loc["emoji-clip contrast"], of.loc["concept classifier"]
        means = [" ".join(f"{one[f'{scale:+g}']:.0f}" for scale in SCALES) for one in two]
        rises = ["yes" if one["monotone"] else "no" for one in two]
        rank = f"{two[0]['spearman']:.2f} [{two[0]['spearman_low']:.2f}, {two[0]['spearman_high']:.2f}]"
        lines.append(f"| {slider} | {model} | {means[0]} | {rises[0]} | {rank} | {means[1]} | {rises[1]} |")
    [scale] = {control.facts["scale"] for control in shipped() if control.kind == "style"}
    parts = {"files": files, "effects": changes, "sweeps": lines}
    text = CARD.format(
        **{name: "\n".join(rows) for name, rows in parts.items()}, seeds=seeds, scale=scale, base_steps=base_steps
    )
    (CONTROLS / "README.md").write_text(text)


if __name__ == "__main__":
    with stage("effects"):
        main()
