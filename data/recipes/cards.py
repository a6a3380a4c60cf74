"""Stage 16: the model cards, from what the other stages measured.

python data/recipes/cards.py
"""

import json

from common import DRAWINGS, MODELS, SHIFT, WORK, concepts, stage
from dmd import TIMESTEPS

from dtviz.metrics.factors import FACTORS

SOURCES = """| set | artist | licence |
|---|---|---|
| Noto Emoji, Noto Emoji v1 | Google Inc (googlefonts/noto-emoji) | Apache-2.0 |
| Fluent Emoji, Fluent Emoji Flat | Microsoft Corporation (microsoft/fluentui-emoji) | MIT |
| FxEmoji | Mozilla (mozilla/fxemoji) | Apache-2.0 |
| Twemoji | Twitter, Inc and other contributors (jdecked/twemoji) | CC-BY-4.0 |
| Emoji One (Colored) | Emoji One, EmojiTwo (EmojiTwo/emojitwo) | CC-BY-4.0 |

Taken from the npm packages `@iconify-json/*`, rendered with transparency, names merged, painted on coloured backgrounds at two sizes
and nine places. The drawings are their artists', under the licences above; the weights are released under the MIT licence.
Share-alike sets (OpenMoji, EmojiOne v1) and monochrome ones were left out of training.
"""

# How the published weights came to be before the recipes of this folder trained them on
TRIAL = {
    "clip": "851 steps of 1,024 pictures on one H100, a trial that kept to 39 seconds and left it underfit.",
    "vae": "1,181 steps of 256 pictures and 299 of the decoder alone on one H100, of a wider world (any size from .55 to .97, any "
    "place, tilted, mirrored); 3,567 steps of 24 of the decoder on two CPU cores (25 minutes), of one size; then, on this world,",
    "base": "4,356 steps of 1,024 on one H100, of the wider world; 4,215 steps of 64 on two CPU cores, of one size and 140 concepts; "
    "6,000 steps of 64 on this world with 80 concepts; then, with the concepts of today,",
}


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
    **{f"variety_{name}": f"variety of {name}" for name in FACTORS},
    "coverage": "coverage",
    "artists": "effective artists",
    "caption_colour": "colour as asked",
    "caption_size": "size as asked",
    "nearest": "distance to the nearest training picture",
    "nearest_other": "distance to another artist's nearest",
    "seconds": "seconds an image",
}
CLIP_ROWS = {
    "all": "concepts",
    "chosen": "concepts of `emoji-base`",
    "held_out": "concepts whose pictures it never saw",
}
NAMES = {"pictures": "painted pictures", "copies": "through the autoencoder"}


def shown(value: float | list[float]) -> str:
    """A measure, with its interval if it has one."""
    digits = 3 if abs(value[0] if isinstance(value, list) else value) < 1 else 2
    if not isinstance(value, list):
        return f"{value:.{digits}f}"
    return f"{value[0]:.{digits}f} [{value[1]:.{digits}f}, {value[2]:.{digits}f}]"


def both(shares: list[float]) -> str:
    """Cells of what was measured on pictures and on their reconstructions."""
    return " | ".join(f"{share:.2f}" for share in shares)


def table(head: str, rows: list[str]) -> str:
    """A Markdown table of the cells between bars."""
    return "\n".join([f"| {head} |", "|---" * (head.count("|") + 1) + "|", *(f"| {row} |" for row in rows)])


def quality(scores: dict, name: str) -> str:
    """The table of one model's measures, painted pictures' reconstructions beside them."""
    model, real = scores["models"][name], scores["models"]["copies"]
    rows = [
        f"{title} | {shown(model[row]) if row in model else ''} | {shown(real[row]) if row in real else ''}"
        for row, title in ROWS.items()
    ]
    return table("measure | value, 95% | painted pictures through the autoencoder", rows)


def distilled_cards() -> dict[str, tuple[str, str]]:
    """Of every distilled model: its method, and how it was trained and is run."""
    dmd, lcm, turbo, lightning = (measured(name) for name in ("dmd", "lcm", "turbo", "lightning"))
    steps = ", ".join(map(str, TIMESTEPS))
    return {
        "emoji-dmd": (
            "distribution matching distillation (DMD2, Yin et al. 2024, with its adversarial head)",
            f"{dmd['steps']} iterations of 64, {dmd['student_updates']} of them updates of the distilled model (the fake score learns at each); "
            f"backward simulation; teacher guidance {dmd['guidance']:g}; the adversary's gradient scaled to {dmd['adversary']:g} of the score "
            f"difference's; weights averaged (0.98). Runs on the LCM scheduler at "
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
    """One row a model and two for the painted pictures."""
    rows = []
    for name, model in scores["models"].items():
        steps = "" if name in NAMES else "20" if name == "emoji-base" else "4"
        cells = [shown(model[row]) if row in model else "" for row in ROWS]
        rows.append(" | ".join([NAMES.get(name, name), steps, *cells]))
    return table(" | ".join(["model", "steps", *ROWS.values()]), rows)


def compared(scores: dict) -> str:
    """Whether each distilled model's images vary less than the base's, over all and by factor, and whether it is right as often."""
    base, rows = scores["models"]["emoji-base"]["concept_accuracy"][0], []
    for model, tests in scores["distilled_less_base"].items():
        for name, (value, low, high, p) in tests.items():
            outcome = "not shown" if p >= 0.05 else "less" if value < 0 else "more"
            rows.append(f"{model} | {ROWS[name]} | {value:+.3f} [{low:+.3f}, {high:+.3f}] | {p:.2g} | {outcome}")
        share = scores["models"][model]["concept_accuracy"][0] / base
        rows.append(f"{model} | share of the base's concept accuracy | {share:.0%} | |")
    return table("distilled model | measure | less the base's, 95% | p, sign-flip, Holm in a model | varied", rows)


def times() -> str:
    """The seconds of every stage's last run, on each kind of machine."""
    rows = [f"{name} | {on.get('cpu', '')} | {on.get('cuda', '')}" for name, on in measured("seconds").items()]
    return table("stage | seconds on CPUs | on a GPU", rows)


def noisy_x0_card(x0: dict) -> str:
    """Describe how the classifier of x0 was made, with its measures at every noise level."""
    names = ("sigmas", "accuracy", "confidence", "error", "clean")
    lines = ["| sigma | right | mean posterior | calibration error | `concept` right |", "|---|---|---|---|---|"]
    for sigma, accuracy, confidence, error, other in zip(*(x0[name] for name in names), strict=True):
        level = f"{sigma:.2f}" if sigma else "final image"
        lines.append(f"| {level} | {accuracy:.2f} | {confidence:.2f} | {error:.3f} | {other:.2f} |")
    table = "\n".join(lines)
    return f"""## The classifier of x0 at every noise level

`plan` gives the posterior that x0 of the base, its predicted clean image at some noise level, shows each of {x0["concepts"]} concepts.
Early x0 are blurred mixtures, and `concept` is wrong on them. One linear classifier of EfficientNet-Lite0 features for all noise
levels and a temperature for each, trained on x0 of {x0["samples"]} samples ({x0["concepts"]} prompts x {x0["seeds"]} seeds), each labelled by
what `concept` reads in the final image; that is the prompt in {x0["as_asked"]:.1%}. Measured on seeds left out, in fifths (`concept` is right at the end by definition):

{table}

The temperatures were fitted on the same left-out scores. An x0 counts as showing a concept from a posterior of {x0["shown"]:.2f} on: no more
than {x0["false_alarms"]:.0%} of these samples ever show so much of a concept that is gone at the end. The shipped classifier was trained on all {x0["seeds"]}
seeds; Figure 3 measures it on others, and on a distilled model's x0."""


def main() -> None:
    vae, clip, base = (measured(name) for name in ("vae", "clip", "base"))
    check, scores = measured("commitment"), measured("evaluate")
    trial = {name: text if not vae["steps"] else "" for name, text in TRIAL.items()}
    encoder = f"{vae['steps']} steps of 64 pictures and " if vae["steps"] else ""
    how = f"""{scores["prompts"]} prompts, those of the figures, x {scores["seeds"]} seeds (LoRAs: {scores["lora_seeds"]}); 95% intervals over
prompts. The painted pictures are as many, of the drawings in turn; the classifiers were trained on other paintings of them.

- Concept accuracy: the concept classifier names the prompt. The emoji-clip score is 100 x the cosine of `emoji-clip`'s features of image and
  prompt; it is not OpenAI's CLIP.
- FD: the Fréchet distance of EfficientNet-Lite0 features to other painted pictures of the prompts (not an FID). It falls with the number of
  images. Mean pairwise distance: 1 - cosine of those features.
- Variety of a factor: the effective number of its values (exp of the entropy, Miller's correction) over the painted world's own, about 1 if the
  samples vary as the pictures do. Coverage: the different combinations of colour, size and place over those expected of as many pictures.
  The factors are read from the images by `dtviz.metrics.factors`; `emoji-judges` has the accuracy of each.
- Effective artists: exp of the entropy of the artist classifier's labels, among the artists who drew the prompt.
- Colour, size as asked: the share of samples of "X on blue" in which that colour is read, of "small X" and "big X" that size; one colour a
  prompt, {scores["caption_seeds"]} seeds.
- Distance to the nearest training picture: every training drawing of the prompt is painted on the sample's own background, at the size and
  place read in the sample; the least 1 - cosine of EfficientNet-Lite0 features, mean of {scores["near"]} samples a prompt. Beside it exact
  copies through the autoencoder, and pictures of the same concept whose own drawing is left out: as near as another artist's drawing is.
- Seconds: prompt to image in batches of ten, {scores["threads"]} CPU thread(s)."""
    kept = table(
        " | ".join(["sigma", "SDXL's sigma there", *check["chance"]]),
        [
            " | ".join([sigma, f"{float(sigma) * SHIFT:.2f}", *(f"{share:.2f}" for share in same.values())])
            for sigma, same in check["kept"].items()
        ],
    )
    chance = ", ".join(f"{name} {share:.2f}" for name, share in check["chance"].items())
    near = {
        name: shown(scores["models"][model][row])
        for name, model, row in (
            ("base", "emoji-base", "nearest"),
            ("copy", "copies", "nearest"),
            ("other", "copies", "nearest_other"),
        )
    }

    (MODELS / "emoji-base" / "README.md").write_text(f"""# emoji-base

A text-to-image latent diffusion model of {len(concepts())} emoji concepts at 64x64, on nine background colours, at two sizes and nine
places, small enough for a laptop's CPU: KL autoencoder (64x64x3 to 8x8x16), the text half of `emoji-clip`, and a UNet of
{base["parameters"] / 1e6:.1f} M parameters that predicts noise. A whole `StableDiffusionPipeline`. Prompts are the concepts' names, with a
size and a colour if wanted ("dog face", "small rocket on green"); it knows no others.

![samples at guidance 5, two prompts a row, eight seeds each](samples.jpg)

## Training

- Autoencoder: {trial["vae"]} {encoder}{vae["decoder_steps"]} steps of 24 of the decoder alone. PSNR {vae["psnr_chosen"]:.1f} dB on
  painted pictures of the base's concepts, {vae["psnr_unseen"]:.1f} dB on {len(concepts("held_out"))} concepts it never saw.
- UNet: {trial["base"]} {base["steps"]} steps of 64, noise prediction, weights averaged (0.999); last loss {base["loss"]:.4f}. A caption
  says the colour in 30% of the pictures, the size in 30%, and is left out one time in ten.
- Sampler: Euler ancestral, 20 trailing steps, guidance 5 by default.

`make models` trains all of it anew; [the models' table](../README.md) has the time of every stage.

## Noise schedule

SDXL's scaled-linear schedule with every sigma divided by {SHIFT}: the same noise destroys more of an 8x8 latent than of
a 128x128 one. Checked on this base: real latents noised to a level and finished by the base without guidance, by a prompt that names the
concept alone; share in which each factor is still read as in the picture that was noised (by chance: {chance}).

{kept}

## Measured

{quality(scores, "emoji-base")}

{how}

Does it know its pictures by heart? Its samples are {near["base"]} from the nearest training picture. An exact copy would be
{near["copy"]} away, through the autoencoder; another artist's drawing of the same concept is {near["other"]} away.

## Data, licences, attributions

{SOURCES}""")

    for name, (method, training) in distilled_cards().items():
        lora = measured(f"{name}-lora")
        (MODELS / name / "README.md").write_text(f"""# {name}

A four-step distilled model of `emoji-base`, by {method}.

![samples, two prompts a row, eight seeds each](samples.jpg)

## Training

{training} It began as the base. Matrices in eight or sixteen bits.

## Measured

{quality(scores, name)}

{how}

## As a LoRA on the base

`lora/` is the same distilled model as an adapter of rank {lora["rank"]} on `emoji-base` (`dtviz.load("{name}-lora")`): the singular value
decomposition of what distillation changed in every matrix, extracted, not trained. It keeps {lora["kept"]:.0%} of the change's
squared norm; biases and norms stay the base's. What that loses:

{quality(scores, name + "-lora")}

## Data, licences, attributions

{SOURCES}""")

    (MODELS / "README.md").write_text(f"""# The embedded models

One base, four distilled models of it by four methods of distillation, whole and as LoRAs, a small CLIP (`emoji-clip`) and four
classifiers (`emoji-judges`); each folder has its card with training, data, licences and attributions. All share the base's autoencoder,
text encoder and noise schedule (SDXL's with every sigma divided by {SHIFT}, see the base's card). UNets of
{base["parameters"] / 1e6:.1f} M parameters.

{zoo(scores)}

{compared(scores)}

{how}

## `make models`: the time of every stage

Of each stage's last run; what a killed stage did before it went on does not count.

{times()}
""")

    trained = trial["clip"] or f"{clip['steps']} steps of {clip['batch']} painted pictures."
    right = table(
        "captions of | nearest caption is right",
        [f"{clip[f'concepts_{of}']} {title} | {clip[f'accuracy_{of}']:.0%}" for of, title in CLIP_ROWS.items()],
    )
    (MODELS / "emoji-clip" / "README.md").write_text(f"""# emoji-clip

A tiny CLIP (`transformers.CLIPModel`, 128-wide features, 64x64 images in 8x8 patches) with its own BPE tokenizer, trained on painted
pictures of {clip["concepts_all"] - clip["concepts_held_out"]} emoji concepts and captions that may say their colour and size. Its text half
conditions `emoji-base`; its image half is the embedder `emoji-clip`. It is not OpenAI's CLIP and its score is not the CLIP score of papers.

{trained} All captions that are true of a picture are its positives. Matrices in eight bits. Painted pictures, one of every drawing:

{right}

## Data, licences, attributions

{SOURCES}""")
    c, y = measured("classifiers"), measured("styles")
    held_out, chosen = len(concepts("held_out")), len(concepts())
    classes = table(
        "classifier | names | reads | measured on | pictures | through the autoencoder | chance",
        [
            f"`artist` | one of {c['artists']} artists | means and deviations of early channels | {held_out} concepts left out | "
            f"{both(c['artist_new_concepts'])} | {1 / c['artists']:.2f}",
            f"`concept` | one of {chosen} concepts | the last channels | other paintings of the drawings | "
            f"{both(c['concept_new_paintings'])} | {1 / chosen:.3f}",
            f"`concept` | | | one artist left out after the other | {both(c['concept_new_artists'])} | {1 / chosen:.3f}",
            f"`style` | one of {y['styles']} artists, three of whom no model has seen | as `artist` | the studied prompts, left out | "
            f"{both(y['new_concepts'])} | {1 / y['styles']:.2f}",
            f"`style` | | | the three new artists' drawings of them | {both(y['new_concepts_and_styles'])} | {1 / y['styles']:.2f}",
        ],
    )
    factors = table(
        "factor | pictures of concepts left out | through the autoencoder | pictures of the base's | through the autoencoder",
        [f"{name} | {both(c['factors_new_concepts'][name])} | {both(c['factors_chosen'][name])}" for name in FACTORS],
    )
    (MODELS / "emoji-judges" / "README.md").write_text(f"""# emoji-judges

Linear classifiers on frozen ImageNet features (EfficientNet-Lite0), trained on painted pictures only, several of every drawing, each
as it is and as the base's autoencoder gives it back. Without the second, the artist classifier would take the autoencoder's blur for a style.

{classes}

`artist` was trained on {c["paintings_artist"]} paintings of {c["drawings_artist"]} drawings, `concept` on {c["paintings_concept"]} of
{c["drawings_concept"]}, `style` on {y["paintings"]} of {y["drawings"]}. The style classifier is for
controls that were trained on OpenMoji, Fluent Emoji High Contrast or EmojiOne v1.

## The reader of factors

`dtviz.metrics.factors.read_factors` has no weights: colour from the border, size and place from the box of what differs from it. The share
of pictures in which each is read right; a hue at the rim of two colours may be read as the other:

{factors}

{noisy_x0_card(measured("noisy_x0_classifier"))}

## Data, licences, attributions

{SOURCES}""")
    (DRAWINGS / "README.md").write_text(f"""# The drawings

`drawings.png`: painted pictures, 64x64, two of every drawing that the embedded models were trained on. `drawings.csv` says what
each shows and where it is: concept, artist, colour of the background, size, place, row and column.

{SOURCES}""")


if __name__ == "__main__":
    with stage("cards"):
        main()
