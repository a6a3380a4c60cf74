"""Stage 6: check the schedule's shift by how much of a picture each noise level leaves.

    python data/recipes/commitment.py

Noise real latents to a level, let the base finish without guidance, and ask of each factor whether it is still what it was: colour,
size and place as `read_factors` reads them, the artist by the classifier. SDXL's distilled models take their second step at sigma
4.1, where SDXL's layout is mostly fixed (Figure 5 of the paper: the base is as near to its final image after 30% of its steps as
the distilled model after one). SHIFT is right when the embedded base keeps most of a picture at its own second timestep.
"""

from itertools import pairwise

import numpy as np
import torch
from base import Bank
from common import DEVICE, SHIFT, arguments, record, stage
from distil import Denoiser, copies

from dtviz.metrics.embedders import embedder
from dtviz.metrics.factors import read_factors
from dtviz.models.classifiers import load_classifier

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
    args = arguments(pictures=160, steps=8)
    bank, artist = Bank(), load_classifier("artist")
    embed, (base,) = embedder(artist.embedder), copies(1, frozen=(0,))
    rows = torch.randperm(len(bank.latents))[: args.pictures].to(DEVICE)
    x0, text = bank.latents[rows], bank.named(bank.facts["label"][rows])

    def read(latents: torch.Tensor) -> dict[str, np.ndarray]:
        images = bank.decode(latents).add(1).div(2).cpu()
        return read_factors(images) | {"artist": np.array(artist(embed(images)))}

    before, noise, kept = read(x0), torch.randn_like(x0), {}
    for level in LEVELS:
        t = torch.full((len(x0),), level, device=DEVICE)
        after = read(finish(base, base.add_noise(x0, t, noise), level, text, args.steps))
        sigma = float(((1 - base.alpha[level]) / base.alpha[level]).sqrt())
        same = kept[f"{sigma:.2f}"] = {name: float((after[name] == before[name]).mean()) for name in before}
        print(f"timestep {level} sigma {sigma:.2f} (SDXL's {sigma * SHIFT:.2f}):", same, flush=True)
    # two pictures of the world agree in a factor with the sum of its squared shares
    shares = {name: np.unique(values, return_counts=True)[1] / len(rows) for name, values in before.items()}
    record("commitment", shift=SHIFT, kept=kept, chance={name: float((p**2).sum()) for name, p in shares.items()})


if __name__ == "__main__":
    with stage("commitment"):
        main()
