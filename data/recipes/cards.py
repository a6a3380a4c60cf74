"""Stage 16: the model cards, from what the other stages measured.

python data/recipes/cards.py
"""

import json

from common import DATA, DRAWINGS, MODELS, SHIFT, WORK, concepts, stage
from dmd import TIMESTEPS

from dtviz.experiments.tables import load

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


ROWS = {
    "concept_accuracy": "concept accuracy",
    "clip_score": "emoji-clip score",
    "frechet": "FD (EfficientNet-Lite0)",
    "mean_pairwise": "mean pairwise distance",
    "artists": "artists",
    "effective_artists": "effective artists",
    "judged_artists": "effective artists, by the classifier",
    "nearest_drawing": "distance to the nearest drawing",
    "seconds": "seconds an image",
}


def shown(value: float | list[float]) -> str:
    """A measure, with its interval if it has one."""
    digits = 3 if abs(value[0] if isinstance(value, list) else value) < 1 else 2
    if not isinstance(value, list):
        return f"{value:.{digits}f}"
    return f"{value[0]:.{digits}f} [{value[1]:.{digits}f}, {value[2]:.{digits}f}]"


def quality(model: dict) -> str:
    """The table of one model's measures."""
    lines = ["| measure | value, 95% |", "|---|---|"]
    return "\n".join(lines + [f"| {title} | {shown(model[name])} |" for name, title in ROWS.items() if name in model])


def student_cards() -> dict[str, tuple[str, str]]:
    """Of every distilled model: its method, and how it was trained and is run."""
    dmd, lcm, turbo, lightning = (measured(name) for name in ("dmd", "lcm", "turbo", "lightning"))
    steps = ", ".join(map(str, TIMESTEPS))
    return {
        "emoji-dmd": (
            "distribution matching distillation (DMD2, Yin et al. 2024, without the adversarial head)",
            f"{dmd['steps']} iterations of 64, {dmd['student_updates']} of them updates of the distilled model (the fake score learns at each); "
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
    """One row a model and two for the drawings."""
    known = {"drawings": "the drawings", "copies": "through the autoencoder"}
    lines = ["| model | steps | " + " | ".join(ROWS.values()) + " |", "|---" * (len(ROWS) + 2) + "|"]
    for name, m in scores["models"].items():
        steps = "" if name in known else "20" if name == "emoji-base" else "4"
        cells = [shown(m[row]) if row in m else "" for row in ROWS]
        lines.append(f"| {known.get(name, name)} | {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared(scores: dict) -> str:
    """Whether each distilled model draws less varied images than the base, and whether it is right as often."""
    base = scores["models"]["emoji-base"]["concept_accuracy"][0]
    head = "| distilled model | mean pairwise distance less the base's | p, sign-flip, Holm | less varied? | share of the base's accuracy |"
    lines = [head, "|---|---|---|---|---|"]
    for model, (value, low, high, p) in scores["student_less_base"].items():
        verdict = "not shown" if p >= 0.05 else "yes" if value < 0 else "no, more"
        share = scores["models"][model]["concept_accuracy"][0] / base
        lines.append(f"| {model} | {value:+.3f} [{low:+.3f}, {high:+.3f}] | {p:.2g} | {verdict} | {share:.0%} |")
    return "\n".join(lines)


def scaling() -> str:
    """The base's loss and accuracy as its training went."""
    seen = [json.loads(line) for line in (WORK / "base.curve.jsonl").read_text().splitlines()]
    lines = ["| step | loss | nearest of all drawings is the prompt's |", "|---|---|---|"]
    return "\n".join(lines + [f"| {s['step']} | {s['loss']:.4f} | {s['accuracy']:.2f} |" for s in seen])


def noisy_x0_card(plans: dict) -> str:
    """Describe how the classifier of x0 was made, with its measures at every noise level."""
    names = ("sigmas", "accuracy", "confidence", "error", "clean_judge")
    lines = ["| sigma | right | mean posterior | calibration error | `concept` right |", "|---|---|---|---|---|"]
    for sigma, accuracy, confidence, error, other in zip(*(plans[name] for name in names), strict=True):
        level = f"{sigma:.2f}" if sigma else "final image"
        lines.append(f"| {level} | {accuracy:.2f} | {confidence:.2f} | {error:.3f} | {other:.2f} |")
    table = "\n".join(lines)
    return f"""## The classifier of x0 at every noise level

`plan` gives the posterior that x0 of the base, its predicted clean image at some noise level, shows each of {plans["concepts"]} concepts.
Early x0 are blurred mixtures, and `concept` is wrong on them. One linear classifier of EfficientNet-Lite0 features for all noise
levels and a temperature for each, trained on x0 of {plans["samples"]} samples ({plans["concepts"]} prompts x {plans["seeds"]} seeds), each labelled by
what `concept` sees in the final image; that is what was asked for in {plans["as_asked"]:.1%}. Measured on seeds left out, in fifths (`concept` is right at the end by definition):

{table}

The temperatures were fitted on the same left-out scores. An x0 counts as showing a concept from a posterior of {plans["shown"]:.2f} on: no more
than {plans["false_alarms"]:.0%} of these samples ever show so much of a concept that is gone at the end. The shipped classifier was trained on all {plans["seeds"]}
seeds; Figure 3 measures it on others, and on a distilled model's x0."""


def settled() -> str:
    """What Figure 5 says of this schedule, if the figure was made."""
    path = DATA.parent / "figures" / "emoji-dmd" / "fig5_similarity_to_final.csv"
    if not path.exists():
        return ""
    table = load(path)
    student = table[table["model"] != "base"]
    level = student["distance"].iloc[0]
    within = table[(table["model"] == "base") & (table["distance"] <= level)]["fraction"].min()
    curve = ", ".join(f"{distance:.2f}" for distance in student["distance"])
    return (
        f"The paper's own measure beside it (Figure 5): the distance of `emoji-dmd`'s x0 to its final image is {curve} after "
        f"its four steps, and the base first comes as near as the first of these after {within:.0%} of its steps; the paper "
        "finds about 30% for SDXL.\n"
    )


def main() -> None:
    vae, clip, base = (measured(name) for name in ("vae", "clip", "base"))
    check, scores = measured("commitment"), measured("evaluate")
    how = f"""{scores["prompts"]} prompts, those of the figures, x {scores["seeds"]} seeds (LoRAs: {scores["lora_seeds"]}); 95% intervals over
prompts. Concept accuracy: the concept classifier names the prompt. The emoji-clip score is 100 x the cosine of `emoji-clip`'s
features of image and prompt; it is not OpenAI's CLIP. FD: the Fréchet distance of EfficientNet-Lite0 features to the
drawings' (not an FID); it falls with the number of images. Mean pairwise distance: 1 - cosine of those features. Artists: how
many of a prompt's artists the samples come nearest to, of their drawings as the autoencoder gives them back; effective
artists: exp of those labels' entropy (Miller-Madow), and the same by the artist classifier. Distance to the nearest drawing, as the
autoencoder gives it back: 0 is a copy; the rows of the drawings tell how far another artist's drawing is. Seconds: prompt to image in batches of ten, {scores["threads"]} CPU thread(s)."""
    kept = "\n".join(
        f"| {sigma} | {float(sigma) * SHIFT:.2f} | {share:.2f} |" for sigma, share in check["kept"].items()
    )
    near = lambda name: f"{scores['models'][name]['nearest_drawing'][0]:.3f}"  # noqa: E731
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
a 128x128 one. At 2.5, an earlier choice, the drawing's colours were still legible at the last timestep: a base of that
schedule was right for 77% of its samples from pure noise and 89% from noised drawings. Checked on this base: real latents
noised to a level and finished by the base; share whose nearest drawing of its concept is still the one they came from (chance
{check["chance"]:.2f}).

| sigma | SDXL's sigma there | same drawing |
|---|---|---|
{kept}

{settled()}
## Measured

{quality(scores["models"]["emoji-base"])}

{how}

The base has learnt its drawings by heart: its samples are {near("emoji-base")} from the nearest one, where another artist's drawing is
{near("copies")} away. That is what makes the modes of a prompt countable; it says nothing of images that were never drawn.

Training longer (averaged weights, 35 prompts x 4 seeds, EfficientNet-Lite0 features; the learning rate falls to zero at the end):

{scaling()}

## Data, licences, attributions

{SOURCES}""")

    for name, (method, training) in student_cards().items():
        notes, lora = history.get(f"{name.removeprefix('emoji-')}.history", ""), measured(f"{name}-lora")
        (MODELS / name / "README.md").write_text(f"""# {name}

A four-step distilled model of `emoji-base`, by {method}.

![samples, two prompts a row, eight seeds each](samples.jpg)

## Training

{training} It began as the base. Two CPU cores; matrices in eight or sixteen bits. {notes}

## Measured

{quality(scores["models"][name])}

{how}

## As a LoRA on the base

`lora/` is the same distilled model as an adapter of rank {lora["rank"]} on `emoji-base` (`dtviz.load("{name}-lora")`): the singular value
decomposition of what distillation changed in every matrix, extracted, not trained. It keeps {lora["kept"]:.0%} of the change's
squared norm; biases and norms stay the base's. What that loses:

{quality(scores["models"][name + "-lora"])}

## Data, licences, attributions

{SOURCES}""")

    (MODELS / "README.md").write_text(f"""# The embedded models

One base, four distilled models of it by four methods of distillation, whole and as LoRAs, a small CLIP (`emoji-clip`) and four classifiers (`emoji-judges`); each folder has
its card with training, data, licences and attributions. All share the base's autoencoder, text encoder and noise schedule (SDXL's with every sigma
divided by {SHIFT}, see the base's card). UNets of {base["parameters"] / 1e6:.1f} M parameters.

{zoo(scores)}

{compared(scores)}

{how}
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
    j, y = measured("judges"), measured("styles")
    (MODELS / "emoji-judges" / "README.md").write_text(f"""# emoji-judges

Linear classifiers on frozen ImageNet features (EfficientNet-Lite0). Two were trained on {j["drawings"]} real drawings only, each as it is and
as the base's autoencoder gives it back: without the second, the artist classifier would take the autoencoder's blur for a style.

| classifier | names | reads | right on held-out drawings | and through the autoencoder | chance |
|---|---|---|---|---|---|
| `artist` | one of {j["artists"]} artists | means and deviations of early channels | {j["artist_accuracy"]:.2f} | {j["artist_accuracy_copies"]:.2f} | {1 / j["artists"]:.2f} |
| `concept` | one of {len(concepts())} concepts | the last channels | {j["concept_accuracy"]:.2f} | {j["concept_accuracy_copies"]:.2f} | {1 / len(concepts()):.3f} |
| `style` | one of {y["styles"]} artists, three of whom no model has seen | as `artist` | {y["accuracy"]:.2f} | {y["accuracy_copies"]:.2f} | {1 / y["styles"]:.2f} |

Held out: 150 whole concepts (artist); one artist after the other (concept); the 36 concepts that the pairs are studied on (style: of
the three new artists' drawings of them, through the autoencoder, {y["new_styles_copies"]:.2f}). The style classifier is for controls that were
trained on OpenMoji, Fluent Emoji High Contrast or EmojiOne v1, and has seen {y["drawings"]} drawings. The other shipped classifiers have seen every drawing of the
training sets. Within one prompt, whose drawings are known, the nearest drawing tells the artist better: see
`dtviz.core.decode.reconstruct`.

{noisy_x0_card(measured("plans"))}

## Data, licences, attributions

{SOURCES}""")
    (DRAWINGS / "README.md").write_text(f"""# The drawings

`drawings.png`: one row a concept, one column an artist (order as in the table of `drawings.csv`), 64x64 on white.

{SOURCES}""")


if __name__ == "__main__":
    with stage("cards"):
        main()
