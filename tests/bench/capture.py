"""What capturing costs: `make bench` writes figures/bench/capture.csv. Ratios within one run; the machine's own speed cancels.

- embedded: a whole 20-step run of emoji-base with capture against one without, in turns.
- SDXL: the recorder's work for one step on SDXL's latents against one step of SDXL's denoiser at full size (random weights).
"""

from __future__ import annotations

import statistics
import sys

import diffusers
import torch

import dtviz
from dtviz.recorder import Recorder
from tests.published import SDXL_UNET

from .measure import beside, peak, publish, timed


def embedded(repeats: int = 9) -> dict:
    """Capture on and off in turns; the median of the pairs' ratios."""
    pair = dtviz.load("emoji-dmd")
    pipe = pair.pipeline
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 20, "guidance_scale": 5.0, "output_type": "latent", "num_images_per_prompt": 8}

    def plain() -> None:
        pipe("dog face", generator=torch.Generator().manual_seed(0), **options)

    def captured() -> None:
        with dtviz.capture(pipe):
            plain()

    timed(plain)
    without, captured_s, ratio = beside(plain, captured, repeats)
    told = {"what": "emoji-base, 20 steps, guidance 5, 8 samples, whole run", "unit": "s"}
    return told | {"without": without, "with_capture": captured_s, "added": ratio - 1}


def sdxl(device: str, repeats: int = 3, records: int = 200) -> list[dict]:
    """One denoiser step against what the recorder adds to it, x̂0, its copy and its noise level; and the memory of fifty."""
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = diffusers.UNet2DConditionModel(**SDXL_UNET).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(records, device=device)
    x = torch.randn(1, 4, 128, 128, device=device, dtype=dtype)
    text = torch.randn(1, 77, 2048, device=device, dtype=dtype)
    added = {
        "text_embeds": torch.randn(1, 1280, device=device, dtype=dtype),
        "time_ids": torch.zeros(1, 6, device=device, dtype=dtype),
    }

    @torch.no_grad()
    def denoise() -> torch.Tensor:
        return unet(x, torch.tensor(500, device=device), text, added_cond_kwargs=added).sample

    output = denoise()
    step = statistics.median(timed(denoise) for _ in range(repeats))
    recorder = Recorder()

    def record() -> None:
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            recorder.before(scheduler, output, t, x)

    each = timed(record) / records
    recorder.after((x,))
    x0 = recorder.fields()["x0"]
    assert x0.untyped_storage().nbytes() == records * 4 * 128 * 128 * 4
    where = f"SDXL's UNet at 1024 px, {str(dtype).removeprefix('torch.')} on {device}, one sample"
    before, kept = peak(), 50 * x0.untyped_storage().nbytes() / records / 2**30
    return [
        _row(f"{where}, one step", "s", step, each),
        _row(f"{where}, memory at the end of 50 steps", "GiB", before, kept),
    ]


def _row(what: str, unit: str, without: float, added: float) -> dict:
    return {"what": what, "unit": unit, "without": without, "with_capture": without + added, "added": added / without}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [embedded()]
    if "--quick" not in sys.argv:
        rows += sdxl(device)
    publish(rows, "capture")


if __name__ == "__main__":
    main()
