"""How the cost grows: `make bench` writes figures/bench/growth.csv, with exponents fitted to times that grow.

The exponent is the slope of log time over log size, by least squares. 1 is proportional.
"""

import statistics

import numpy as np

import dtviz
from dtviz.metrics import diversity, quality

from .measure import publish, timed

WIDTH = 1792  # of DreamSim's ensemble
COUNTS, STEPS, BATCHES = (100, 300, 1000, 3000, 10_000, 30_000), (4, 10, 20, 50, 100), (1, 2, 4, 8, 16, 32, 64)


def fitted(what: str, call, sizes) -> dict:
    taken = {n: statistics.median(timed(lambda: call(n)) for _ in range(3 if n <= 1000 else 1)) for n in sizes}  # noqa: B023
    slope = np.polyfit(np.log(list(taken)), np.log(list(taken.values())), 1)[0]
    least, most = min(sizes), max(sizes)
    return {"what": what, "from": least, "to": most, "s_from": taken[least], "s_to": taken[most], "exponent": slope}


def main() -> None:
    features = np.random.default_rng(0).normal(size=(max(COUNTS), WIDTH)).astype(np.float32)
    pair = dtviz.load("emoji-dmd")

    def frechet(n: int) -> float:
        return quality.frechet_distance(features[:n], features[n - 1 :: -1])

    def run(steps: int, samples: int) -> None:
        seeds = range(samples)
        trace = dtviz.generate(pair, "dog face", method="base", base_steps=steps, seeds=seeds, batch_size=samples)
        dtviz.decode(trace, pair)

    run(4, 1)
    images = f"n images of {WIDTH} features"
    rows = [
        fitted(f"mean_pairwise, {images}", lambda n: diversity.mean_pairwise(features[:n]), COUNTS),
        fitted(f"vendi, {images}", lambda n: diversity.vendi(features[:n]), COUNTS),
        fitted(f"frechet_distance, {images}", frechet, COUNTS[:4]),  # a minute and less
        fitted("generate and decode, n steps of 4 samples", lambda n: run(n, 4), STEPS),
        fitted("generate and decode, n samples of 10 steps", lambda n: run(10, n), BATCHES),
    ]
    publish(rows, "growth")


if __name__ == "__main__":
    main()
