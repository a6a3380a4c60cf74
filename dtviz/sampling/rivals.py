"""Other ways to more varied samples without training, to set beside a hybrid at equal cost.

Interval guidance (Kynkäänniemi et al. 2024), and no guidance at the first steps, are a guidance scale for each step, which
`generate` takes as it is. Here are the two that change what the denoiser is told or what it plans.
"""

from __future__ import annotations

import hashlib
import math

import torch

# Sadat et al. 2024 (CADS), section 4.1: the condition is all noise above the second time and untouched below the first.
ANNEALED = (0.6, 0.9)


def anneal(text: torch.Tensor, *, time: float, scale: float, noise: torch.Tensor) -> torch.Tensor:
    """The text states of a condition-annealed denoiser call (CADS, Sadat et al. 2024, equations 4 to 6).

    sqrt(gamma) y + scale sqrt(1 - gamma) noise, brought back to the mean and deviation of y; gamma falls from 1 at time
    .6 to 0 at .9.

    Args:
        text: (sample, token, channel).
        time: 0 (clean) to 1 (pure noise).
        scale: the noise's deviation, above 0.
        noise: standard normal, of the shape of `text`.

    >>> text = torch.randn(2, 3, 4)
    >>> torch.equal(anneal(text, time=0.5, scale=0.25, noise=torch.randn(2, 3, 4)), text)
    True
    """
    low, high = ANNEALED
    gamma = min(max((high - time) / (high - low), 0.0), 1.0)
    if gamma == 1:
        return text
    mixed = math.sqrt(gamma) * text + scale * math.sqrt(1 - gamma) * noise.to(text)
    mean, deviation = (f(mixed, dim=(1, 2), keepdim=True) for f in (torch.mean, torch.std))
    return (mixed - mean) / deviation * text.std(dim=(1, 2), keepdim=True) + text.mean(dim=(1, 2), keepdim=True)


def annealing_noise(seed: int) -> torch.Generator:
    """The generator of a sample's annealing noise, apart from the sample's own.

    Not a larger number, such as seed + 2**32: torch's CPU generator takes the low 32 bits alone, and the text would be
    annealed by the very noise that the sample begins with.

    >>> annealing_noise(0).initial_seed() == annealing_noise(1).initial_seed()
    False
    """
    digest = hashlib.sha256(f"annealing {seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:4], "big"))


def repel(x0: torch.Tensor, *, strength: float) -> torch.Tensor:
    """Plans that keep away from each other (particle guidance, Corso et al. 2024, on x̂0 with the RBF kernel of its section 5).

    x_i + strength log(n) sum_j exp(-d_ij² log(n) / m²) (x_i - x_j), m the median of the distances d_ij: the gradient of the
    log potential in units of m² / 2, so that a strength means the same at every noise level. At the median distance the kernel is 1 / n.

    Args:
        x0: (sample, ...); of one sample nothing repels it.
        strength: 0 is none; 1 takes equidistant plans log(n) times as far from their mean again.

    >>> float(repel(torch.tensor([[-1.0], [1.0]]), strength=1.0)[1]) > 1
    True
    """
    n, flat = len(x0), x0.flatten(1)
    if n < 2:
        return x0
    square = torch.cdist(flat, flat) ** 2
    pairs = torch.triu_indices(n, n, offset=1)
    median = square[pairs[0], pairs[1]].median()
    if median == 0:
        return x0
    kernel = torch.exp(-square * math.log(n) / median)
    push = kernel.sum(dim=1, keepdim=True) * flat - kernel @ flat
    return x0 + strength * math.log(n) * push.view_as(x0)
