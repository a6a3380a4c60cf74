"""Stage 11: the model cards, from what the other stages measured.

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


def quality(samplers: dict) -> str:
    """The table of one model's samplers."""
    lines = ["| sampler | concept accuracy | mean pairwise distance | artists |", "|---|---|---|---|"]
    for name, m in samplers.items():
        lines.append(
            f"| {name} | {interval(m['concept_accuracy'])} | {interval(m['mean_pairwise'])} | {m['artists'][0]:.2f} |"
        )
    return "\n".join(lines)


def student_cards() -> dict[str, tuple[str, str]]:
    """Of every student: its method, and how it was trained and is run."""
    dmd, lcm, turbo, lightning = (measured(name) for name in ("dmd", "lcm", "turbo", "lightning"))
    steps = ", ".join(map(str, TIMESTEPS))
    return {
        "emoji-dmd": (
            "distribution matching distillation (DMD2, Yin et al. 2024, without the adversarial head)",
            f"{dmd['steps']} iterations of 64, {dmd['student_updates']} of them student updates (the fake score learns at each); "
            f"backward simulation; teacher guidance {dmd['guidance']:g}; weights averaged (0.98). Runs on the LCM scheduler at "
            f"its trained timesteps {steps}, without guidance.",
        ),
        "emoji-lcm": (
            "latent consistency distillation (Luo et al. 2023)",
            f"{lcm['steps']} iterations of {lcm['batch']} on a grid of 50 timesteps, one grid step a target; teacher guidance "
            f"{lcm['guidance']:g}, baked in; target weights averaged ({lcm['ema']:g}); pseudo-Huber loss. Runs on the LCM scheduler "
            "at timesteps 999, 759, 499, 259, without guidance.",
        ),
        "emoji-turbo": (
            "adversarial distillation on the base's own features with score distillation (ADD, LADD, Sauer et al. 2023, 2024)",
            f"{turbo['steps']} iterations of {turbo['batch']}; hinge loss on heads over the frozen base's features, R1 "
            f"{turbo['r1']:g}; score distillation weight {turbo['distil']:g}, teacher guidance {turbo['guidance']:g}; weights averaged "
            f"(0.98). Runs on the Euler ancestral scheduler, trailing ({steps}), without guidance.",
        ),
        "emoji-lightning": (
            "progressive adversarial distillation (SDXL-Lightning, Lin et al. 2024)",
            f"{lightning['first']} iterations of {lightning['batch']} from 32 guided steps (guidance {lightning['guidance']:g}) to 8 by "
            f"squared error, {lightning['second']} from 8 to 4 with an adversary; weights averaged (0.98). Runs on the Euler "
            f"scheduler, trailing ({steps}), without guidance: an ODE, which keeps the noise it began with.",
        ),
    }


def zoo(scores: dict) -> str:
    """One row a model, then whether each student's samples are less varied than the base's."""
    lines = [
        "| model | steps | concept accuracy | emoji-clip score | FD (EfficientNet-Lite0) | mean pairwise distance | artists | s an image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    drawn = scores["models"]["drawings"]["drawn"]
    lines.append(
        f"| the drawings | | | {drawn['clip_score'][0]:.1f} | 0 | {interval(drawn['mean_pairwise'])} | {drawn['artists'][0]:.2f} | |"
    )
    for model, samplers in scores["models"].items():
        if model == "drawings":
            continue
        m = samplers.get("student") or samplers["base, guidance 5"]
        lines.append(
            f"| {model} | {4 if 'student' in samplers else '20, guidance 5'} | {interval(m['concept_accuracy'])} "
            f"| {m['clip_score'][0]:.1f} | {m['frechet']:.3f} | {interval(m['mean_pairwise'])} | {m['artists'][0]:.2f} | {m['seconds']:.3f} |"
        )
    lines += ["", "| student | mean pairwise distance less the base's, 95% | p, sign-flip, Holm |", "|---|---|---|"]
    for model, (value, low, high, p) in scores["student_less_base"].items():
        lines.append(f"| {model} | {value:+.3f} [{low:+.3f}, {high:+.3f}] | {p:.2g} |")
    return "\n".join(lines)


def main() -> None:
    vae, clip, base = (measured(name) for name in ("vae", "clip", "base"))
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

![samples at guidance 5, two prompts a row, eight seeds each](samples.jpg)

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

{quality(scores["models"]["emoji-base"])}

{how}

## Data, licences, attributions

{SOURCES}""")

    for name, (method, training) in student_cards().items():
        told = history.get(f"{name.removeprefix('emoji-')}.history", "")
        (MODELS / name / "README.md").write_text(f"""# {name}

A four-step student of `emoji-base`, by {method}.

![samples, two prompts a row, eight seeds each](samples.jpg)

## Training

{training} It began as the base. Two CPU cores; matrices in eight or sixteen bits. {told}

## Measured

{quality(scores["models"][name])}

{how} The hybrids give the student's first step to the base, without guidance: the published one on the student's scheduler,
the other on the base's own schedule down to the student's second noise level.

## Data, licences, attributions

{SOURCES}""")

    (MODELS / "README.md").write_text(f"""# The embedded models

One base, four students of it by four methods of distillation, and a text-image judge; each folder has its card with training,
data, licences and attributions. All share the base's autoencoder, text encoder and noise schedule (SDXL's with every sigma
divided by {SHIFT}, see the base's card). UNets of {base["parameters"] / 1e6:.1f} M parameters.

{zoo(scores)}

DMD2 and Turbo draw less varied images than the base, LCM and Lightning do not. Those two had short trainings, and their accuracy
is below 85% of the base's: part of their variety is error.

{how} FD: the Fréchet distance of those features to the drawings' (not an FID); it falls with the number of images, compare it
within this table only. The emoji-clip score is 100 x the cosine of `emoji-clip`'s features of image and prompt; it is not
OpenAI's CLIP. Seconds on two CPU cores, for comparison within the table.
""")

    (MODELS / "emoji-clip" / "README.md").write_text(f"""# emoji-clip

A tiny CLIP (`transformers.CLIPModel`, 128-wide features, 64x64 images) with its own BPE tokenizer, trained on
{clip["concepts_all"]} emoji concepts and their names. Its text half conditions `emoji-base`; its image half is the embedder
`emoji-clip`. It is not OpenAI's CLIP and its score is not the CLIP score of papers.

{clip["steps"]} steps of 224 drawings, with flips, shifts and scaling; matrices in eight bits. The right name comes first among the
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
