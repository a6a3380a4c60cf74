"""Stage 14: what the sliders do, on the base and on every distilled model; writes the card of `data/controls`.

    python data/recipes/effects.py --seeds 10 --base-steps 20

Every slider at five scales on its own prompts. Samples are kept in the cache, so that a stage which was killed goes on.
"""

import numpy as np
import pandas as pd
from common import DATA, arguments, stage
from tqdm.auto import tqdm

from dtviz.controls import effect, shipped, sweep
from dtviz.experiments import slider_cases as cases
from dtviz.experiments.study import Study

SCALES = (-2.0, -1.0, 0.0, 1.0, 2.0)
PARTS = ((0.0, 1.0), (-2.0, 2.0))  # what is compared: switched on, and end to end
BASE = "emoji-dmd"  # a pair that has the base
CONTROLS = DATA / "controls"


def scores(study: Study, case: cases.Case, method: str) -> dict[str, np.ndarray]:
    """Every measure of a slider at every scale, (scale, prompt, seed)."""
    controls = [[case.control.at(scale)] for scale in SCALES]
    return {
        measure.name: np.stack([cases.scores(study, measure, case.prompts, method, controls=on) for on in controls])
        for measure in case.measures
    }


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
                rho = whole.spearman
                row |= {"spearman": rho.value, "spearman_low": rho.low, "spearman_high": rho.high, "p": rho.p}
                sweeps.append(row | {"rising": whole.rising})
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

| control | kind | trained on | trained with | layers, rank | iterations x batch, lr | strength | loss at the end | numbers | licence |
|---|---|---|---|---|---|---|---|---|---|
{files}

**Sliders** (Concept Sliders; rollouts of 8 steps with guidance 3 on the base, 4 steps on a distilled model) are trained
from texts alone. `age`, `smile` and `green` go from one concept of the base towards another. `size` and `background` move a known
factor of the painted pictures: their ends are words added to eight concepts, such as "big rocket" and "small rocket".

**Styles** (LoRA, the denoiser's own loss at uniform timesteps, one caption in ten left out) are trained on painted pictures by one artist
in no model's training set, of the concepts of `concepts.txt` that the pairs are *not* studied on, on the backgrounds and at the sizes
and places of the other training pictures. The scale in the table and the layers were chosen by eye on an earlier base, of
drawings on white. There, neither keys and values of the cross-attention alone (Custom Diffusion's layers) nor all attention drew
outlines. What the styles do: `notebooks/table1_control_transfer.ipynb`.

## What the sliders do

Three measures. *Score*: 100 x the cosine with the text of the positive end in `emoji-clip`; in `sweeps.csv` alone. *Contrast*: score
less the same for the negative end. The third, in %: the concept classifier's posterior of the positive end, among both ends; for a slider
of a known factor, the share of samples that `dtviz.metrics.factors.read_factors` reads as big, or as on blue.

Scale 2 against scale -2, {seeds} seeds of each of the slider's prompts, the base in {base_steps} steps. Intervals: 95% over prompts. Sign-flip p
are Holm-corrected for the five models of a slider: with fewer than eight prompts p cannot reach .05. Scale 1 against 0 is in
`effects.csv`. Some prompts of `age`, `smile` and `green` are at an end of the scale already. Transfer: the distilled model's
difference over the base's, by Fieller.

| slider | prompts | model | measure | difference | p | transfer |
|---|---|---|---|---|---|---|
{effects}

Means over the scales -2, -1, 0, 1, 2. *Monotone*: the mean rises at every step. Rank correlation of score and scale within a
seed: 95% over prompts.

| slider | model | measure | means | monotone | rank correlation |
|---|---|---|---|---|---|
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

Painted at 64x64 as `data/recipes/world.py` paints. Made by `data/recipes/controls.py`, measured by `data/recipes/effects.py`.
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
        source = ends or f"{facts['images']['number']} pictures by {facts['towards']}"
        strength = f"eta {facts['eta']:g}" if control.kind == "slider" else f"scale {facts['scale']:g}"
        how = f"{facts['iterations']} x {facts['batch_size']}, {facts['lr']:g} | {strength} | {facts['loss']:.3g}"
        size = f"{len(control.modules)}, {facts['rank']} | {how} | {numbers}"
        files.append(f"| {control.name} | {control.kind} | {on} | {source} | {size} | {facts['licence']} |")
    compared = effects[(effects["measure"] != "emoji-clip score") & (effects["high"] == SCALES[-1])]
    changes = [
        f"| {row.slider} | {row.prompts} | {row.model} | {row.measure} | {row.difference:+.1f} [{row.difference_low:+.1f}, {row.difference_high:+.1f}] | {row.p:.2g} | "
        + ("|" if np.isnan(row.transfer) else f"{row.transfer:.2f} [{row.transfer_low:.2f}, {row.transfer_high:.2f}] |")
        for row in compared.itertuples()
    ]
    lines = []
    for _, row in sweeps[sweeps["measure"] != "emoji-clip score"].iterrows():
        means, rises = " ".join(f"{row[f'{scale:+g}']:.0f}" for scale in SCALES), "yes" if row["monotone"] else "no"
        rank = f"{row['spearman']:.2f} [{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
        lines.append(f"| {row['slider']} | {row['model']} | {row['measure']} | {means} | {rises} | {rank} |")
    parts = {"files": files, "effects": changes, "sweeps": lines}
    tables = {name: "\n".join(rows) for name, rows in parts.items()}
    text = CARD.format(**tables, seeds=seeds, base_steps=base_steps)
    (CONTROLS / "README.md").write_text(text)


if __name__ == "__main__":
    with stage("effects"):
        main()
