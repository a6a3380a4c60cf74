"""How much a Fréchet distance is off at small N: `make bench` writes figures/bench/fd_bias.csv.

Features of two known Gaussians, whose covariance falls as network features' does (eigenvalues 1 / i), 512 dimensions: one
pair equal (true FD 0), one with shifted means (true FD 4). Beside it the kernel distance, which is unbiased.
"""

from __future__ import annotations

import numpy as np

from dtviz import quality

from .measure import publish

D, SIZES, RUNS = 512, (100, 300, 1000, 3000, 10_000), 4
TRUTH = {"equal": 0.0, "shifted": 4.0}


def kernel_truth(shift: np.ndarray, variances: np.ndarray) -> float:
    """Its closed form: E (x·y / d + 1)³ of independent normals from the cumulants of x·y, within less across."""

    def expected(mu: np.ndarray, nu: np.ndarray) -> float:
        first = mu @ nu
        second = (variances * (mu**2 + nu**2 + variances)).sum()
        third = 6 * (variances**2 * mu * nu).sum()
        square, cube = second + first**2, third + 3 * first * second + first**3
        return 1 + 3 * first / D + 3 * square / D**2 + cube / D**3

    zero = np.zeros(D)
    return expected(zero, zero) + expected(shift, shift) - 2 * expected(zero, shift)


def main() -> None:
    rng = np.random.default_rng(0)
    deviations = 1 / np.sqrt(np.arange(1, D + 1))
    rows = []
    for name, truth in TRUTH.items():
        shift = np.full(D, np.sqrt(truth / D))
        kernel = kernel_truth(shift, deviations**2)
        for n in SIZES:
            draws = [
                (rng.normal(size=(n, D)) * deviations, shift + rng.normal(size=(n, D)) * deviations)
                for _ in range(RUNS)
            ]
            rows.append(
                {
                    "distributions": name,
                    "n": n,
                    "FD": np.mean([quality.frechet_distance(*draw) for draw in draws]),
                    "true FD": truth,
                    "kernel distance": np.mean([quality.kernel_distance(*draw).value for draw in draws]),
                    "true kernel distance": kernel,
                }
            )
    publish(rows, "fd_bias")


if __name__ == "__main__":
    main()
