"""Stage 6: check the schedule's shift by how much of a drawing each noise level leaves.

    python data/recipes/commitment.py

Noise real latents to a level, let the base finish without guidance, and ask whether the result is still nearest to
the same artist's drawing of its concept. SDXL's distilled models take their second step at sigma 4.1, where SDXL's layout is
mostly fixed (Figure 5 of the paper: the base is as near to its final image after 30% of its steps as the distilled model
after one). SHIFT is right when the embedded base keeps most drawings at its own second timestep.
"""

from itertools import pairwise

import numpy as np
import torch
from base import Conditioning
from common import DEVICE, SHIFT, arguments, record, stage
from distil import Denoiser, copies

from dtviz.metrics.diversity import nearest
from dtviz.metrics.embedders import embedder

LEVELS = (999, 899, 799, 749, 699, 599, 499, 399, 249)


@torch.inference_mode()
def finish(base: Denoiser, x_t: torch.Tensor, start: int, text: torch.Tensor, steps: int) -> torch.Tensor:
    """DDIM from timestep `start` to a clean sample."""
    times = np.linspace(start, 0, steps + 1).round().astype(int)
    for now, after in pairwise(times):
        t = torch.full((len(x_t),), int(now), device=DEVICE)
        noise = base.noise(x_t, t, text)
        x0 = base.x0(x_t, t, noise)
        x_t = x0 if after == 0 else base.add_noise(x0, torch.full_like(t, int(after)), noise)
    return x_t


def main() -> None:
    args = arguments(drawings=160, steps=8)
    data, embed = Conditioning(), embedder("efficientnet-lite0")
    (base,) = copies(1, frozen=(0,))
    features = embed(data.decode(data.latents).add(1).div(2).cpu())
    chosen = torch.randperm(len(data.latents))[: args.drawings].tolist()
    x0, label = data.latents[chosen], data.label[chosen]
    noise = torch.randn_like(x0)
    kept = {}
    for level in LEVELS:
        t = torch.full((len(x0),), level, device=DEVICE)
        made = finish(base, base.add_noise(x0, t, noise), level, data.text[label], args.steps)
        ends = embed(data.decode(made).add(1).div(2).cpu())
        same = []
        for row, drawing in enumerate(chosen):
            others = (data.label == label[row]).nonzero()[:, 0].tolist()
            same.append(others[int(nearest(ends[row : row + 1], features[others])[0])] == drawing)
        sigma = float(((1 - base.alpha[level]) / base.alpha[level]).sqrt())
        kept[f"{sigma:.2f}"] = float(np.mean(same))
        print(
            f"timestep {level} sigma {sigma:.2f} (SDXL's {sigma * SHIFT:.2f}): same drawing {kept[f'{sigma:.2f}']:.2f}",
            flush=True,
        )
    chance = float(np.mean([1 / int((data.label == c).sum()) for c in label]))
    record("commitment", shift=SHIFT, chance=chance, kept=kept)


if __name__ == "__main__":
    with stage("commitment"):
        main()
