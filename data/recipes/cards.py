"""Stage 8: the model cards, from what the other stages measured.

python data/recipes/cards.py
"""

import json

from common import DRAWINGS, MODELS, SHIFT, WORK, concepts, stage
from dmd import TIMESTEPS

SOURCES = """| set | artist | licence |
|---|---|---|
| Noto Emoji, Noto Emoji v1 | Google Inc (googlefonts/noto-emoji) | Apache-2.0 |
| Fluent Emoji, Fluent Emoji Flat | Microsoft Corporation (microsoft/fluentui-emoji) | MIT |
| FxEmoji | Mozilla (mozilla/fxemoji) | Apache-2.0 |
| Twemoji | Twitter, Inc and other contributors (jdecked/twemoji) | CC-BY-4.0 |
| Emoji One (Colored) | Emoji One, EmojiTwo (EmojiTwo/emojitwo) | CC-BY-4.0 |

Taken from the npm packages `@iconify-json/*`, rendered at 64x64 on white, names merged. The drawings are their artists',
under the licences above; the weights are released under the MIT licence. Share-alike sets (OpenMoji, EmojiOne v1) and
monochrome ones were left out of training.
"""


def measured(name: str) -> dict:
    """What a stage recorded."""
    path = WORK / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"no {path.name} in the work folder: run the stage first")
    return json.loads(path.read_text())


def interval(values: list[float]) -> str:
    """value [low, high], three digits."""
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def quality(samplers: dict, names: tuple[str, ...]) -> str:
    """The table of samplers."""
    lines = ["| sampler | concept accuracy | mean pairwise distance | artists |", "|---|---|---|---|"]
    for name in names:
        m = samplers[name]
        lines.append(
            f"| {name} | {interval(m['concept_accuracy'])} | {interval(m['mean_pairwise'])} | {m['artists']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    vae, clip, base, dmd = (measured(name) for name in ("vae", "clip", "base", "dmd"))
    check, scores = measured("commitment"), measured("evaluate")
    how = (
        f"{scores['prompts']} prompts x {scores['seeds']} seeds; 95% intervals over prompts. Concept accuracy: the nearest of "
        "all real drawings, by EfficientNet-Lite0 features, is a drawing of the prompt. Mean pairwise distance: 1 - cosine of "
        "those features. Artists: how many of a prompt's artists its samples come nearest to."
    )
    kept = "\n".join(
        f"| {sigma} | {float(sigma) * SHIFT:.2f} | {share:.2f} |" for sigma, share in check["kept"].items()
    )
    history = {path.stem: path.read_text() for path in sorted(WORK.glob("*.history.md"))}

    (MODELS / "emoji-base" / "README.md").write_text(f"""# emoji-base

A text-to-image latent diffusion model of {len(concepts())} emoji concepts at 64x64, small enough for a laptop's CPU: KL
autoencoder (64x64x3 to 8x8x16), the text half of `emoji-clip`, and a UNet of {base["parameters"] / 1e6:.1f} M parameters that
predicts noise. A whole `StableDiffusionPipeline`. Prompts are the concepts' names ("dog face"); it knows no others.

![samples at guidance 5, two prompts a row, eight seeds each](samples.png)

## Training

- Autoencoder: {vae["steps"]} steps of 8 drawings. PSNR {vae["psnr_unseen"]:.1f} dB on {60} concepts it never saw,
  {vae["psnr_seen"]:.1f} dB on those it saw.
- Sampler: Euler ancestral, 20 trailing steps, guidance 5 by default.
- UNet: {base["steps"]} steps of 64 latents, noise prediction, caption dropped one time in ten, weights averaged (0.999);
  last loss {base["loss"]:.3f}.
- All on two CPU cores; `make models` repeats it. {history.get("base.history", "")}

## Noise schedule

SDXL's scaled-linear schedule with every sigma divided by {SHIFT}: the same noise destroys more of an 8x8 latent than of
a 128x128 one. Checked on this base: real latents noised to a level and finished by the base; share whose nearest drawing of
its concept is still the one they came from (chance {check["chance"]:.2f}).

| sigma | SDXL's sigma there | same drawing |
|---|---|---|
{kept}

## Measured

{quality(scores["samplers"], ("base, guidance 3", "base, guidance 5", "base, guidance 5, DDIM"))}

{how}

## Data, licences, attributions

{SOURCES}""")

    (MODELS / "emoji-dmd" / "README.md").write_text(f"""# emoji-dmd

The four-step student of `emoji-base`, by distribution matching distillation (DMD2, Yin et al. 2024, without the
adversarial head). Timesteps {", ".join(map(str, TIMESTEPS))}, LCM scheduler, no guidance.

![samples, two prompts a row, eight seeds each](samples.png)

## Training

{dmd["steps"]} iterations of 64, {dmd["student_updates"]} of them student updates (the fake score learns at each); backward
simulation; teacher guidance {dmd["guidance"]:g}; student weights averaged (0.98). Two CPU cores. {history.get("dmd.history", "")}

## Measured

{quality(scores["samplers"], ("student", "hybrid, published", "hybrid, matched sigma", "skip", "base, guidance 5"))}

{how} The hybrids give the student's first step to the base, without guidance: the published one on the student's scheduler,
the other on the base's own schedule down to the student's second noise level.

## Data, licences, attributions

{SOURCES}""")

    (MODELS / "emoji-clip" / "README.md").write_text(f"""# emoji-clip

A tiny CLIP (`transformers.CLIPModel`, 128-wide features, 64x64 images) with its own BPE tokenizer, trained on
{clip["concepts_all"]} emoji concepts and their names. Its text half conditions `emoji-base`; its image half is the embedder
`emoji-clip`. It is not OpenAI's CLIP and its score is not the CLIP score of papers.

{clip["steps"]} steps of 224 drawings, with flips, shifts and scaling. The right name comes first among the
{clip["concepts_chosen"]} names of `emoji-base` for {clip["accuracy_chosen"]:.0%} of their drawings, among all
{clip["concepts_all"]} for {clip["accuracy_all"]:.0%} (training drawings but for the 60 held-out concepts). {history.get("clip.history", "")}

## Data, licences, attributions

{SOURCES}""")
    (DRAWINGS / "README.md").write_text(f"""# The drawings

`drawings.png`: one row a concept, one column an artist (order as in the table of `drawings.csv`), 64x64 on white.

{SOURCES}""")


if __name__ == "__main__":
    with stage("cards"):
        main()
