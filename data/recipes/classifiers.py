"""Stage 4: two linear classifiers, trained on real drawings only: who drew an image, and what it shows.

    python data/recipes/classifiers.py

Logistic regression on frozen ImageNet features. Every drawing comes twice, as it is and through the autoencoder, so that
the classifiers do not take its blur for a style. Held out for the measures: whole concepts (artist), one artist after the other
(concept); the shipped classifiers have seen all drawings. Writes `data/models/emoji-judges`.
"""

import json
from types import SimpleNamespace

import numpy as np
import torch
from common import DEVICE, MODELS, WORK, arguments, as_images, caption, concepts, drawings, record, stage
from diffusers import AutoencoderKL
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

import dtviz
from dtviz.core.decode import reconstruct

EMBEDDERS = {"artist": "efficientnet-lite0-style", "concept": "efficientnet-lite0", "style": "efficientnet-lite0-style"}


def features(images: np.ndarray, kind: str) -> np.ndarray:
    """(2, n, d) of the drawings and of their copies, for this classifier; kept in the work folder, for a stage that is killed."""
    path = WORK / f"judge_{kind}.npy"
    if not path.exists():
        plain, embed = as_images(images) / 2 + 0.5, dtviz.embedder(EMBEDDERS[kind])
        vae = AutoencoderKL.from_pretrained(MODELS / "emoji-base" / "vae", dtype=torch.float32).to(DEVICE).eval()
        both = plain, reconstruct(plain, SimpleNamespace(vae=vae))
        seen = [[embed(part) for part in tqdm(those.split(256), desc=kind)] for those in both]
        np.save(path.with_suffix(".tmp.npy"), np.stack([np.concatenate(parts) for parts in seen]))
        path.with_suffix(".tmp.npy").replace(path)
    return np.load(path)


def fit(x: np.ndarray, label: np.ndarray, strength: float):
    """The classifier of (2, n, d) features, drawings and copies alike."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return model.fit(np.concatenate(x), np.tile(label, 2))


def publish(kind: str, model, classes: list[str]) -> None:
    """Save the classifier as one matrix, the scaling folded in."""
    scaler, linear = model[0], model[1]
    weight = linear.coef_.T / scaler.scale_[:, None]
    arrays = {
        "weight": weight.astype(np.float32),
        "bias": (linear.intercept_ - scaler.mean_ @ weight).astype(np.float32),
    }
    folder = MODELS / "emoji-judges"
    folder.mkdir(exist_ok=True)
    facts = {"classes": json.dumps(classes), "embedder": EMBEDDERS[kind]}
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / f"{kind}.safetensors", facts)


def main() -> None:
    args = arguments(artist_strength=1.0, concept_strength=0.01, held_out=150)
    data, names = drawings(), concepts()
    chosen, artist, concept = np.isin(data["concept"], names), data["artist"], data["concept"]
    style, content = features(data["images"], "artist"), features(data["images"][chosen], "concept")

    some = np.random.default_rng(0).choice(np.unique(concept), args.held_out, replace=False)
    unseen = np.isin(concept, some)
    trial = fit(style[:, ~unseen], artist[~unseen], args.artist_strength)
    among = [trial.score(kind[unseen], artist[unseen]) for kind in style]
    whole = fit(style, artist, args.artist_strength)
    publish("artist", whole, list(whole.classes_))

    concept, artist = concept[chosen], artist[chosen]
    right = np.zeros(content.shape[:2])
    for who in tqdm(np.unique(artist), desc="leave one artist out"):
        own = artist == who
        trial = fit(content[:, ~own], concept[~own], args.concept_strength)
        right[:, own] = [trial.predict(kind[own]) == concept[own] for kind in content]
    whole = fit(content, concept, args.concept_strength)
    publish("concept", whole, [caption(name) for name in whole.classes_])
    record(
        "judges",
        artist_accuracy=among[0],
        artist_accuracy_copies=among[1],
        artists=len(np.unique(artist)),
        concept_accuracy=right[0].mean(),
        concept_accuracy_copies=right[1].mean(),
        drawings=len(chosen),
    )


if __name__ == "__main__":
    with stage("judges"):
        main()
