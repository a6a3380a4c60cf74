"""Stage 4: two linear classifiers, trained on painted drawings only: who drew an image, and what it shows.

    python data/recipes/classifiers.py

Logistic regression on frozen ImageNet features. Every drawing is painted several times, and each picture comes twice, as it is and
through the autoencoder, so that the classifiers do not take its blur for a style. Measured on whole concepts that were left out
(artist), on other paintings of the same drawings, and on one artist left out after the other (concept). The reader of factors
is measured here too. Writes `data/models/emoji-judges`.
"""

import json
from collections.abc import Iterator

import numpy as np
import torch
from common import DEVICE, MODELS, arguments, concepts, reconstruct, record, stage
from diffusers import AutoencoderKL
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from world import World, caption, sample_factors

import dtviz
from dtviz.metrics.factors import FACTORS, read_factors

EMBEDDERS = {"artist": "efficientnet-lite0-style", "concept": "efficientnet-lite0", "style": "efficientnet-lite0-style"}


def paintings(world: World, rows: torch.Tensor, *, seed: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Yield the factors of some of the pictures, and images (2, n, 3, 64, 64) in [0, 1], plain and through the autoencoder."""
    vae = AutoencoderKL.from_pretrained(MODELS / "emoji-base" / "vae", dtype=torch.float32).to(DEVICE).eval()
    generator = torch.Generator().manual_seed(seed)
    for part in tqdm(rows.split(256), desc="paint", mininterval=10):
        factors = sample_factors(len(part), generator=generator)
        images = (world.paint(part, factors) / 2 + 0.5).clamp(0, 1)
        yield factors, torch.stack([images, reconstruct(images, vae)])


def features(kind: str, world: World, rows: torch.Tensor, *, seed: int) -> np.ndarray:
    """(2, n, d) for this classifier, of one painting of each row and of its reconstruction."""
    embed = dtviz.embedder(EMBEDDERS[kind])
    parts = [np.stack([embed(some) for some in both]) for _, both in paintings(world, rows, seed=seed)]
    return np.concatenate(parts, axis=1)


def read_right(world: World, rows: torch.Tensor, *, seed: int) -> dict[str, list[float]]:
    """Of each factor, how often it is read right in pictures and in their reconstructions."""
    hits: dict[str, list[np.ndarray]] = {name: [] for name in FACTORS}
    for factors, both in paintings(world, rows, seed=seed):
        for name, index in read_factors(both).items():
            hits[name].append(index == factors[name].numpy())
    return {name: np.concatenate(parts, axis=1).mean(axis=1).tolist() for name, parts in hits.items()}


def fit(x: np.ndarray, label: np.ndarray, strength: float):
    """The classifier of (2, n, d) features, pictures and reconstructions alike."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return model.fit(np.concatenate(x), np.tile(label, 2))


def scores(model, x: np.ndarray, label: np.ndarray) -> list[float]:
    """Accuracy on pictures and on reconstructions."""
    return [float(model.score(some, label)) for some in x]


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
    args = arguments(artist_strength=1.0, concept_strength=0.01, artist_paintings=5, concept_paintings=5, others=2)
    world = World()
    held_out = torch.from_numpy(world.held_out.nonzero()[0]).repeat(args.artist_paintings)
    seen = torch.from_numpy((~world.held_out).nonzero()[0]).repeat(args.artist_paintings)
    whole = fit(features("artist", world, seen, seed=0), world.artist[seen], args.artist_strength)
    publish("artist", whole, list(whole.classes_))
    artist_right = scores(whole, features("artist", world, held_out, seed=1), world.artist[held_out])

    drawings = torch.from_numpy(np.isin(world.concept, concepts()).nonzero()[0])
    rows, others = drawings.repeat(args.concept_paintings), drawings.repeat(args.others)
    x, concept, artist = features("concept", world, rows, seed=2), world.concept[rows], world.artist[rows]
    whole = fit(x, concept, args.concept_strength)
    publish("concept", whole, [caption(name) for name in whole.classes_])
    left_out = np.zeros(x.shape[:2])
    for who in tqdm(np.unique(artist), desc="leave one artist out"):
        own = artist == who
        trial = fit(x[:, ~own], concept[~own], args.concept_strength)
        left_out[:, own] = [trial.predict(some[own]) == concept[own] for some in x]
    record(
        "classifiers",
        paintings_artist=args.artist_paintings,
        paintings_concept=args.concept_paintings,
        drawings_artist=len(seen) // args.artist_paintings,
        drawings_concept=len(drawings),
        artists=len(np.unique(world.artist)),
        artist_new_concepts=artist_right,
        concept_new_paintings=scores(whole, features("concept", world, others, seed=3), world.concept[others]),
        concept_new_artists=left_out.mean(axis=1).tolist(),
        factors_new_concepts=read_right(world, held_out, seed=1),
        factors_chosen=read_right(world, others, seed=3),
    )


if __name__ == "__main__":
    with stage("classifiers"):
        main()
