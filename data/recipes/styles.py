"""Stage 12: the drawings of three artists whom no model has seen, and a classifier that knows their styles too.

    python data/recipes/styles.py

Share-alike and monochrome sets: OpenMoji's line art, Fluent Emoji High Contrast, EmojiOne v1. Renders those of the concepts
in `concepts.txt` into `data/recipes/work/styles.npz`, and trains the style classifier as `classifiers.py` trains the artists', on the
concepts that the pairs are not studied on. Writes `data/models/emoji-judges/style.safetensors`.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from classifiers import fit, publish
from common import DATA, DEVICE, MODELS, WORK, arguments, as_images, caption, concepts, drawings, record, stage
from diffusers import AutoencoderKL
from drawings import load_set, render
from tqdm.auto import tqdm

import dtviz
from dtviz.core.decode import reconstruct

STYLES = ("openmoji", "fluent-emoji-high-contrast", "emojione-v1")


def studied() -> set[str]:
    """The prompts that the pairs are studied on; no style is trained on them."""
    return set(pd.read_csv(DATA / "prompts" / "emoji.csv")["prompt"])


def collect() -> dict[str, np.ndarray]:
    """`images` (n, 64, 64, 3) uint8, `prompt` (n,), `style` (n,), kept in the work folder."""
    path = WORK / "styles.npz"
    if not path.exists():
        found = []
        for style in STYLES:
            icons = load_set(style)
            for name in concepts():
                icon = icons["icons"].get(icons.get("aliases", {}).get(name, {"parent": name})["parent"])
                if icon is not None:
                    found.append((render(icon, icons), caption(name), style))
        images, prompts, styles = zip(*found, strict=True)
        np.savez_compressed(path, images=np.stack(images), prompt=np.array(prompts), style=np.array(styles))
    with np.load(path) as data:
        return dict(data)


def main() -> None:
    args = arguments(strength=1.0)
    new, old = collect(), drawings()
    known = np.isin(old["concept"], concepts())
    images = np.concatenate([old["images"][known], new["images"]])
    label = np.concatenate([old["artist"][known], new["style"]])
    prompts = np.concatenate([[caption(name) for name in old["concept"][known]], new["prompt"]])
    unseen = np.isin(prompts, list(studied()))

    plain, embed = as_images(images) / 2 + 0.5, dtviz.embedder("efficientnet-lite0-style")
    vae = AutoencoderKL.from_pretrained(MODELS / "emoji-base" / "vae", dtype=torch.float32).to(DEVICE).eval()
    both = plain, reconstruct(plain, SimpleNamespace(vae=vae))
    x = np.stack([np.concatenate([embed(part) for part in tqdm(those.split(64), desc="look")]) for those in both])
    model = fit(x[:, ~unseen], label[~unseen], args.strength)
    publish("style", model, list(model.classes_))
    ours = unseen & np.isin(label, STYLES)
    record(
        "styles",
        styles=len(model.classes_),
        drawings=int((~unseen).sum()),
        accuracy=model.score(x[0, unseen], label[unseen]),
        accuracy_copies=model.score(x[1, unseen], label[unseen]),
        new_styles_copies=model.score(x[1, ours], label[ours]),
    )


if __name__ == "__main__":
    with stage("styles"):
        main()
