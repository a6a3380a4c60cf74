"""Stage 12: the drawings of three artists whom no model has seen, and a classifier that knows their styles too.

    python data/recipes/styles.py

Share-alike and monochrome sets: OpenMoji's line art, Fluent Emoji High Contrast, EmojiOne v1. Renders those of the concepts
in `concepts.txt` into `data/recipes/work/styles.npz`, and trains the style classifier as `classifiers.py` trains the artists', on the
concepts that the pairs are not studied on. Writes `data/models/emoji-judges/style.safetensors`.
"""

import numpy as np
import torch
from classifiers import features, fit, publish, scores
from common import WORK, arguments, concepts, record, stage
from drawings import load_set, render
from world import World, caption, sample_factors

from dtviz.experiments.paper import EMOJI_PROMPTS

STYLES = ("openmoji", "fluent-emoji-high-contrast", "emojione-v1")


def drawn() -> World:
    """The three artists' drawings of the chosen concepts, kept in the work folder. `held_out`: those the pairs are studied on."""
    path = WORK / "styles.npz"
    if not path.exists():
        parts = []
        for style in STYLES:
            icons = load_set(style)
            for name in concepts():
                icon = icons["icons"].get(icons.get("aliases", {}).get(name, {"parent": name})["parent"])
                if icon is not None:
                    parts.append((render(icon, icons), name, style, caption(name) in EMOJI_PROMPTS))
        columns = (np.array(column) for column in zip(*parts, strict=True))
        np.savez_compressed(path, **dict(zip(("images", "concept", "artist", "held_out"), columns, strict=True)))
    return World("styles")


def collect(paintings: int = 5) -> dict[str, np.ndarray]:
    """Painted pictures of these drawings: `images` (n, 64, 64, 3) uint8, `prompt` (n,), `style` (n,)."""
    world = drawn()
    rows = torch.arange(len(world.rgba)).repeat(paintings)
    images = world.paint(rows, sample_factors(len(rows), generator=torch.Generator().manual_seed(0)))
    prompts = np.array([caption(name) for name in world.concept[rows]])
    images = images.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return {"images": images, "prompt": prompts, "style": world.artist[rows]}


def main() -> None:
    args = arguments(strength=1.0, paintings=5)
    x, label, unseen = [], [], []
    for world in (World(), drawn()):
        rows = torch.from_numpy(np.isin(world.concept, concepts()).nonzero()[0]).repeat(args.paintings)
        x.append(features("style", world, rows, seed=0))
        label.append(world.artist[rows])
        unseen.append(np.isin([caption(name) for name in world.concept[rows]], EMOJI_PROMPTS))
    x, label, unseen = np.concatenate(x, axis=1), np.concatenate(label), np.concatenate(unseen)
    model = fit(x[:, ~unseen], label[~unseen], args.strength)
    publish("style", model, list(model.classes_))
    ours = unseen & np.isin(label, STYLES)
    record(
        "styles",
        styles=len(model.classes_),
        paintings=args.paintings,
        drawings=int((~unseen).sum()) // args.paintings,
        new_concepts=scores(model, x[:, unseen], label[unseen]),
        new_concepts_and_styles=scores(model, x[:, ours], label[ours]),
    )


if __name__ == "__main__":
    with stage("styles"):
        main()
