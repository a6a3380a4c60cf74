"""How far estimates of few images are off: `make bench` writes figures/bench/coverage.csv and fd_bias.csv.

The first is how often the 95% interval of `mean_pairwise` holds the truth. Images are drawn with replacement from populations whose mean distance is known: made-up ones, from easy to hard, and the
features of `emoji-dmd`'s own 100 samples of each prompt, base and distilled model, for which it is the mean over all prompts.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

import dtviz
from dtviz.experiments.study import Study
from dtviz.metrics.quality import frechet_distance

from .measure import publish

RUNS, SIZES = 1000, (10, 30, 100)
Draw = Callable[[int], np.ndarray]


def population(features: np.ndarray) -> tuple[float, Draw]:
    """The true mean distance and a sampler of these rows: E d over two independent draws is 1 - |mean of unit rows|²."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    left, size, _ = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    rows = left * size  # the same angles in no more dimensions than rows
    return 1 - float((rows.mean(axis=0) ** 2).sum()), lambda n: rows[rng.integers(len(rows), size=n)]


def made_up() -> Iterator[tuple[str, float, Draw]]:
    """Name, true mean distance, sampler."""
    scale = 0.5 * np.linspace(1, 0.05, 50) ** 2
    many = np.eye(50)[0] + rng.normal(size=(50_000, 50)) * scale
    yield "50 directions of falling variance", *population(many)
    for share in (0.5, 0.8, 0.95):
        centres = np.eye(30)[:2] + 0.1 * rng.normal(size=(20_000, 2, 30))
        rows = np.concatenate([centres[: int(20_000 * share), 0], centres[int(20_000 * share) :, 1]])
        yield f"two modes, {share:.0%} in one", *population(rows)

    def circle(n: int) -> np.ndarray:
        angle = rng.vonmises(0, 2, n)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    yield "von Mises directions on a circle", 1 - (special.iv(1, 2) / special.iv(0, 2)) ** 2, circle


def coverage(truth: float, draw: Draw, n: int) -> float:
    """Share of intervals that hold the truth."""
    estimates = [dtviz.mean_pairwise(draw(n)) for _ in range(RUNS)]
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))


def frechet_bias() -> list[dict]:
    """Fréchet distance of two known Gaussians in 512 dimensions, with equal means (true FD 0) and shifted ones (4).

    Their covariance falls as network features' does, with eigenvalues 1 / i.
    """
    rows, deviations, rng = [], 1 / np.sqrt(np.arange(1, 513)), np.random.default_rng(0)
    for name, truth in (("equal", 0.0), ("shifted", 4.0)):
        for n in (100, 300, 1000, 3000, 10_000):
            draws = [rng.normal(size=(2, n, 512)) * deviations for _ in range(4)]
            mean = np.mean([frechet_distance(a, np.sqrt(truth / 512) + b) for a, b in draws])
            rows.append({"distributions": name, "n": n, "FD": mean, "true FD": truth})
    return rows


def main() -> None:
    publish(frechet_bias(), "fd_bias")
    rows = []
    for name, truth, draw in made_up():
        found = {f"n = {n}": coverage(truth, draw, n) for n in SIZES}
        rows.append({"population": name, "true mean distance": truth} | found)
    study = Study.open("emoji-dmd", seeds=range(100))
    for method in ("base", "distilled"):
        known = [population(study.features(prompt, method)) for prompt in study.prompts]
        found = np.array([[coverage(truth, draw, n) for n in SIZES] for truth, draw in known])
        names = [f"n = {n}" for n in SIZES]
        for what, values in (("mean", found.mean(axis=0)), ("least", found.min(axis=0))):
            title = f"emoji-dmd {method}, {what} over {len(known)} prompts"
            mean = float(np.mean([truth for truth, _ in known]))
            rows.append({"population": title, "true mean distance": mean} | dict(zip(names, values, strict=True)))
    publish(rows, "coverage")


rng = np.random.default_rng(0)

if __name__ == "__main__":
    main()
