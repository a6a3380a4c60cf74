"""Cost of capturing: `make bench` writes figures/bench/capture.csv. Ratios within one run.

- embedded: a whole 20-step run of emoji-base with capture against one without, in turns.
- SDXL: the recorder's work for one step on SDXL's latents against one step of its denoiser at full size.
"""

from __future__ import annotations

import statistics
import sys

import diffusers
import torch

import dtviz
from dtviz.core.capture import Recorder

from . import sdxl
from .measure import beside, peak, publish, timed


def embedded(repeats: int = 9) -> dict:
    """Capture on and off in turns."""
    pipe = dtviz.load("emoji-dmd").pipeline
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 20, "guidance_scale": 5.0, "output_type": "latent", "num_images_per_prompt": 8}

    def plain() -> None:
        pipe("dog face", generator=torch.Generator().manual_seed(0), **options)

    def captured() -> None:
        with dtviz.capture(pipe):
            plain()

    timed(plain)
    without, with_capture, ratio = beside(plain, captured, repeats)
    what = "emoji-base, 20 steps, guidance 5, 8 samples, whole run"
    return {"what": what, "unit": "s", "without": without, "with_capture": with_capture, "added": ratio - 1}


def full_size(repeats: int = 3, records: int = 200) -> list[dict]:
    """One denoiser step against what the recorder adds to it; and the memory of fifty steps."""
    denoise = sdxl.evaluation(sdxl.unet(), side=1024)
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(records, device=sdxl.DEVICE)
    x, output, recorder = torch.randn(1, 4, 128, 128, device=sdxl.DEVICE, dtype=sdxl.DTYPE), denoise(), Recorder()
    step = statistics.median(timed(denoise) for _ in range(repeats))

    def record() -> None:
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            recorder.before_step(scheduler, output, t, x, expected=records, arguments={})

    each = timed(record) / records
    recorder.after_step((x,))
    kept = 50 * recorder.fields()["x0"].untyped_storage().nbytes() / records / 2**30
    where = f"SDXL's UNet at 1024 px, {sdxl.WHERE}, one sample"
    values = (("one step", "s", step, each), ("memory at the end of 50 steps", "GiB", peak(), kept))
    columns = ("what", "unit", "without", "with_capture", "added")
    rows = [(f"{where}, {what}", unit, alone, alone + added, added / alone) for what, unit, alone, added in values]
    return [dict(zip(columns, row, strict=True)) for row in rows]


if __name__ == "__main__":
    publish([embedded(), *([] if "--quick" in sys.argv else full_size())], "capture")
