"""What one evaluation of SDXL's denoiser costs at full size, and with it an image: `make bench` writes figures/bench/step.csv.

Made-up weights cost what trained ones do. The seconds an image are evaluations times seconds each, the denoiser's alone: the
text encoders, the autoencoder and the scheduler's steps come on top. One network with a LoRA is timed with the LoRA on.
`peak_gib` is the most that the process took so far, `estimate_gib` what `dtviz.memory` says of weights and work before loading.
"""

from __future__ import annotations

import time

import torch
from peft import LoraConfig

from dtviz import memory
from dtviz.models.families import FAMILIES
from dtviz.models.specs import SPECS

from .measure import peak, publish, timed
from .memory import DEVICE, DTYPE, LORA, unet

SIDE = 1024
# evaluations a sample of whole runs: two for each guided step of the base
RUNS = {"base, 50 steps with guidance": 100, "student, 4 steps": 4, "hybrid, 1 + 3": 4, "skip, 3 steps": 3}


@torch.no_grad()
def seconds(denoiser, batch: int, repeats: int) -> tuple[float, float]:
    """Of the fastest of some evaluations after the first, which allocates: by the clock, and of a processor over all threads."""
    options = {"device": DEVICE, "dtype": DTYPE}
    x, text = torch.randn(batch, 4, SIDE // 8, SIDE // 8, **options), torch.randn(batch, 77, 2048, **options)
    added = {"text_embeds": torch.randn(batch, 1280, **options), "time_ids": torch.zeros(batch, 6, **options)}
    times = []
    for _ in range(repeats):
        start = time.process_time()
        clock = timed(lambda: denoiser(x, torch.tensor(500, device=DEVICE), text, added_cond_kwargs=added))
        times.append((clock, time.process_time() - start))
    return min(times[1:])


def estimate(lora: bool, batch: int) -> float:
    """GiB of the denoiser's weights, with its LoRA's, and of one evaluation."""
    spec, of = SPECS["sdxl-lcm-lora"], FAMILIES["sdxl"]
    part = memory.weights(spec, item=2)
    return (part["base"] + lora * part["student"] + memory.work(of, SIDE, SIDE, batch, 2)) / 2**30


def main() -> None:
    batches, repeats = ((1, 8), 6) if DEVICE == "cuda" else ((1, 2), 3)
    denoiser, rows = unet(), []
    for what in ("one network", "one network with a LoRA"):
        if "LoRA" in what:
            denoiser.add_adapter(LoraConfig(r=64, target_modules=list(LORA)), adapter_name="fast")
            denoiser.to(DTYPE)
        for batch in batches:
            each, busy = (taken / batch for taken in seconds(denoiser, batch, repeats))
            row = {"what": what, "where": f"{str(DTYPE).removeprefix('torch.')} on {DEVICE}, {SIDE} px", "batch": batch}
            room = {"peak_gib": peak(), "estimate_gib": estimate("LoRA" in what, batch)}
            row |= {"evaluation_s": each, "processor_s": busy}
            rows.append(row | {f"{name} [s]": n * each for name, n in RUNS.items()} | room)
    publish(rows, "step")


if __name__ == "__main__":
    main()
