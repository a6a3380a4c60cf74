"""How the cost grows: `make bench` writes figures/bench/growth.csv, with exponents fitted to times that grow.

The exponent is the slope of log time over log size, by least squares; 1 is proportional. Small sizes, where fixed costs rule,
are in the table but count like the others.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

import dtviz
from dtviz.metrics import diversity, quality

from .measure import publish, timed

WIDTH = 1792  # of DreamSim's ensemble
COUNTS, STEPS, BATCHES = (100, 300, 1000, 3000, 10_000, 30_000), (4, 10, 20, 50, 100), (1, 2, 4, 8, 16, 32, 64)
MOST = {"vendi": 30_000, "frechet_distance": 3000}  # a minute and less


def measures() -> list[dict]:
    """Of n images' features."""
    features = np.random.default_rng(0).normal(size=(max(COUNTS), WIDTH)).astype(np.float32)
    calls = {
        "mean_pairwise": diversity.mean_pairwise,
        "vendi": diversity.vendi,
        "frechet_distance": lambda rows: quality.frechet_distance(rows, rows[::-1]),
    }
    return [
        fitted(f"{name}, n images of {WIDTH} features", lambda n, call=call: call(features[:n]), sizes)
        for name, call in calls.items()
        for sizes in [[n for n in COUNTS if n <= MOST.get(name, max(COUNTS))]]
    ]


def sampling() -> list[dict]:
    """Of captured runs of emoji-base: steps at one batch, samples at ten steps."""
    pair = dtviz.load("emoji-dmd")

    def run(steps: int, samples: int) -> None:
        seeds = range(samples)
        trace = dtviz.generate(pair, "dog face", method="base", base_steps=steps, seeds=seeds, batch_size=samples)
        dtviz.decode(trace, pair)

    run(4, 1)
    return [
        fitted("generate and decode, n steps of 4 samples", lambda n: run(n, 4), STEPS),
        fitted("generate and decode, n samples of 10 steps", lambda n: run(10, n), BATCHES),
    ]


def fitted(what: str, call, sizes) -> dict:
    taken = {n: statistics.median(timed(lambda: call(n)) for _ in range(3 if n <= 1000 else 1)) for n in sizes}  # noqa: B023
    slope = np.polyfit(np.log(list(taken)), np.log(list(taken.values())), 1)[0]
    least, most = min(sizes), max(sizes)
    return {"what": what, "from": least, "to": most, "s_from": taken[least], "s_to": taken[most], "exponent": slope}


def main() -> None:
    with torch.inference_mode():
        publish([*measures(), *sampling()], "growth")


if __name__ == "__main__":
    main()
