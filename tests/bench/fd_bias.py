"""How much a Fréchet distance is off at small N: `make bench` writes figures/bench/fd_bias.csv.

Features of two known Gaussians, whose covariance falls as network features' does (eigenvalues 1 / i), 512 dimensions: one
pair equal (true FD 0), one with shifted means (true FD 4).
"""

import numpy as np

from dtviz.metrics.quality import frechet_distance

from .measure import publish

D, SIZES, RUNS = 512, (100, 300, 1000, 3000, 10_000), 4
TRUTH = {"equal": 0.0, "shifted": 4.0}


def main() -> None:
    rng = np.random.default_rng(0)
    deviations = 1 / np.sqrt(np.arange(1, D + 1))
    rows = []
    for name, truth in TRUTH.items():
        shift = np.full(D, np.sqrt(truth / D))
        for n in SIZES:
            draws = [rng.normal(size=(2, n, D)) * deviations for _ in range(RUNS)]
            mean = np.mean([frechet_distance(a, shift + b) for a, b in draws])
            rows.append({"distributions": name, "n": n, "FD": mean, "true FD": truth})
    publish(rows, "fd_bias")


if __name__ == "__main__":
    main()
