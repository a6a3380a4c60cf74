"""Stage 13: sliders and styles on the base, and one of each on every distilled model: the embedded pairs' controls.

    python data/recipes/controls.py                          # leaves what is done
    python data/recipes/controls.py --only age --on base     # several at once, each in a process of its own

Sliders are trained from texts alone. Styles are trained on painted pictures by artists in no model's training set (`styles.py`),
of the concepts that the pairs are not studied on. Writes `data/controls`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import DATA, stage
from diffusers.models.attention_processor import AttnProcessor
from styles import collect

import dtviz
from dtviz.controls import Control, train_customisation, train_slider
from dtviz.experiments.paper import EMOJI_PROMPTS

CONTROLS = DATA / "controls"
BASE = "emoji-dmd"  # a pair that has the base
DISTILLED = ("emoji-dmd", "emoji-lcm", "emoji-turbo", "emoji-lightning")
REVERSED = ("age", "high-contrast")  # trained on every distilled model too

# Both ends are concepts of the base, which knows hardly any other words. They are among the targets, so that a slider is
# trained to leave either end.
SLIDERS = {
    "age": {"positive": "man", "negative": "baby", "target": ["man", "baby", "woman", "girl"]},
    "smile": {
        "positive": "grinning face",
        "negative": "angry face",
        "target": [
            *("grinning face", "angry face", "loudly crying face", "smiling face with sunglasses"),
            *("man", "baby", "woman"),
        ],
    },
    "green": {
        "positive": "green apple",
        "negative": "red apple",
        "target": ["green apple", "red apple", "tomato", "strawberry", "pear"],
    },
}
# Sliders of known factors: the ends are words added to the target, as published. A plain target has either size and any
# colour. Blue and orange are opposite hues. Eight prompts are the fewest that a sign-flip test over prompts can use.
TARGETS = ("dog face", "cat face", "penguin", "mushroom", "strawberry", "crown", "rocket", "house")
FACTORS = {"size": ("big {}", "small {}"), "background": ("{} on blue", "{} on orange")}
SLIDERS |= {
    name: {
        "positive": [high.format(target) for target in TARGETS],
        "negative": [low.format(target) for target in TARGETS],
        "target": list(TARGETS),
    }
    for name, (high, low) in FACTORS.items()
}
# Published, for SDXL: eta 4, alpha 1, lr 2e-4, 1000 iterations of one sample, rollouts of 50 steps. Here larger steps, since
# the network has 7 M parameters. Eta 1 was enough between whole concepts on an earlier base; the published 4 was not tried.
SLIDER = {"eta": 1.0, "rank": 4, "alpha": 4.0, "lr": 2e-3, "iterations": 300, "batch_size": 8}

# Name: the set, and the scale, chosen by eye on an earlier base: at 1 its drawings fell apart.
STYLES = {
    "openmoji": ("openmoji", 0.75),
    "high-contrast": ("fluent-emoji-high-contrast", 0.75),
    "emojione-v1": ("emojione-v1", 0.75),
}
# More than Custom Diffusion's keys and values of the cross-attention. On an earlier base, of drawings on white, neither these
# nor attention alone drew outlines.
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
STYLE = {"lr": 1e-3, "batch_size": 16, "drop": 0.1, "modules": LAYERS}
SIZES = {
    "base": {"rank": 4, "alpha": 4.0, "iterations": 400},
    "distilled": {"rank": 2, "alpha": 2.0, "iterations": 300},
}


def slider(name: str, distilled: str | None, pair: dtviz.Pair) -> Control:
    """One slider."""
    on = {"on": "base", "steps": 8} if distilled is None else {"on": "distilled"}
    return train_slider(pair, name=name, licence="MIT", **on, **SLIDER | SLIDERS[name])


def style(name: str, distilled: str | None, pair: dtviz.Pair) -> Control:
    """One style, of the concepts that the pairs are not studied on."""
    source, scale = STYLES[name]
    data = collect()
    chosen = (data["style"] == source) & ~np.isin(data["prompt"], EMOJI_PROMPTS)
    images = torch.from_numpy(data["images"][chosen]).permute(0, 3, 1, 2).float() / 255
    made = train_customisation(
        pair,
        images,
        name=name,
        prompts=[str(prompt) for prompt in data["prompt"][chosen]],
        on="base" if distilled is None else "distilled",
        licence="MIT" if name == "high-contrast" else "CC-BY-SA-4.0",
        **STYLE,
        **SIZES["base" if distilled is None else "distilled"],
    )
    return replace(made, facts=made.facts | {"towards": source, "scale": scale})


def place(name: str, distilled: str | None) -> Path:
    """Where a control is published."""
    return CONTROLS / (distilled or "") / f"{name}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="one control's name")
    parser.add_argument("--on", choices=("base", *DISTILLED), help="on this network alone")
    args = parser.parse_args()
    jobs = [(name, None) for name in (*SLIDERS, *STYLES)] + [(name, who) for name in REVERSED for who in DISTILLED]
    for name, distilled in jobs:
        if (
            args.only not in (None, name)
            or args.on not in (None, distilled or "base")
            or place(name, distilled).exists()
        ):
            continue
        pair = dtviz.load(distilled or BASE)
        for network in (pair.base, pair.distilled):
            network.set_attn_processor(AttnProcessor())  # the fused one's backward is slow on a CPU
        train = slider if name in SLIDERS else style
        made = train(name, distilled, pair)
        half = {key: tensor.half() for key, tensor in made.tensors.items()}  # half the bytes in the repository
        print(replace(made, tensors=half).save(place(name, distilled)), f"loss {made.facts['loss']:.4f}", flush=True)


if __name__ == "__main__":
    with stage("controls"):
        main()
