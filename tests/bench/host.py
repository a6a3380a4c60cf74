"""Processor time of the host during a call: `make bench` writes figures/bench/host.csv. Ratios within one run, in turns.

A network with as many modules as SDXL's at tiny width: nearly all of its time on a CPU is what the host of a GPU would need to
start the same operations. Seconds are processor time on one thread.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from diffusers import LCMScheduler

import dtviz

from . import sdxl
from .measure import beside, publish


def call(pipe, around: Callable = nullcontext) -> None:
    with around():
        pipe("a dog", num_inference_steps=4, guidance_scale=0.0, height=64, width=64, output_type="latent")


def main(arguments: list[str]) -> list[dict]:
    torch.set_num_threads(1)
    settings, repeats = (sdxl.TINY, 1) if "--tiny" in arguments else (sdxl.SLIM, 15)
    pipe, distilled, single = (sdxl.unet(settings) for _ in range(3))
    pipe, single = sdxl.pipeline(pipe), sdxl.pipeline(single)
    for one in (pipe, single):
        one.scheduler = LCMScheduler(**sdxl.NOISE)
    sdxl.add_lora(single.unet, "fast")
    plain, rows, one = partial(call, pipe), [], "dtviz.hybrid, one network with a LoRA"

    def add(what: str, asked: float, other: Callable) -> None:
        without, seconds, ratio = beside(plain, other, repeats, clock=time.process_time)
        row = {"what": f"4 steps inside {what}", "plain s": without, "s": seconds, "ratio": ratio}
        rows.append(row | {"asked": asked})

    add("dtviz.capture", 1.02, partial(call, pipe, partial(dtviz.capture, pipe)))
    add("dtviz.hybrid, two networks", 1.05, partial(call, pipe, partial(dtviz.hybrid, pipe, distilled)))
    block = partial(dtviz.hybrid, single, "fast")
    add(f"{one}, a block for each call", 1.10, partial(call, single, block))
    with block():
        add(f"{one}, one block for all calls", 1.10, partial(call, single))
    publish(rows, "host", write="--tiny" not in arguments)
    return rows


if __name__ == "__main__":
    main(sys.argv)
