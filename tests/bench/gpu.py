"""What dtviz costs on a GPU: `make gpu` prints it, and on CUDA writes figures/bench/gpu.csv. Under four minutes on an H100.

SDXL's published sizes, random weights, float16, 1024 px, one sample: whole calls from prompt to latents, each in turns with what
it is compared with. Seconds are medians. `--tiny` is a dry run of the same rows at tiny sizes, on a CPU too.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from diffusers import LCMScheduler

import dtviz

from . import sdxl
from .measure import DEVICE, beside, peak, publish, timed


class Bench:
    """Rows of the table, each with the device, and what they share."""

    def __init__(self, *, tiny: bool) -> None:
        self.rows: list[dict] = []
        self.repeats, self.steps, self.base_steps = (1, 2, 4) if tiny else (5, 20, 50)
        self.settings = sdxl.TINY if tiny else sdxl.FULL
        self.size = dict.fromkeys(("height", "width"), 8 * self.settings["sample_size"])
        self.device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
        self.device += f", {str(sdxl.DTYPE)[6:]}, {'tiny sizes' if tiny else 'SDXL at 1024 px'}"

    def pair(self, pipe, distilled: torch.nn.Module | str) -> dtviz.Pair:
        options = {"timesteps": (999, 749, 499, 249), "size": tuple(self.size.values()), "base_steps": self.base_steps}
        return dtviz.Pair(pipe, distilled, distilled_scheduler=LCMScheduler(**sdxl.NOISE), **options)

    def add(self, what: str, *, seconds=None, gib=None, compared_with="", ratio=None, asked=None) -> None:
        row = {"what": what, "device": self.device, "seconds": seconds, "GiB": gib}
        self.rows.append(row | {"compared with": compared_with, "ratio": ratio, "asked": asked})

    def alone(self, what: str, call: Callable) -> None:
        """Add a row for the second of two calls."""
        call()
        self.add(what, seconds=timed(call))

    def turns(self, what: str, call: Callable, name: str, other: Callable, asked: float | None = None) -> None:
        """Add a row for a call in turns with another."""
        _, seconds, ratio = beside(other, call, self.repeats)
        self.add(what, seconds=seconds, compared_with=name, ratio=ratio, asked=asked)

    def memory(self, what: str, call: Callable, idle: int = 0) -> None:
        """Add a row for the peak memory of a call, without the bytes of idle networks, against that of the first such row."""
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        call()
        gib = peak() - idle / 2**30
        first = next((row["GiB"] for row in self.rows if row["GiB"]), gib)
        self.add(f"peak memory: {what}", gib=gib, compared_with="one network", ratio=gib / first)

    def own_call(self, pipe, steps: int, guidance: float, around: Callable = nullcontext) -> None:
        """Call a pipeline as its user does, inside a context manager."""
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent", **self.size}
        with around():
            pipe("a dog", generator=torch.Generator().manual_seed(0), **options)

    def evaluation(self, denoiser: torch.nn.Module, batch: int) -> None:
        """Evaluate the denoiser once."""
        options, side = {"device": DEVICE, "dtype": sdxl.DTYPE}, self.settings["sample_size"]
        text = torch.zeros(batch, 77, self.settings["cross_attention_dim"], **options)
        pooled = torch.zeros(batch, sdxl.pooled_width(denoiser), **options)
        added = {"text_embeds": pooled, "time_ids": torch.zeros(batch, 6, **options)}
        with torch.no_grad():
            denoiser(torch.zeros(batch, 4, side, side, **options), 500, text, added_cond_kwargs=added)

    def run(self) -> list[dict]:
        """Measure all rows."""
        single = sdxl.pipeline(sdxl.unet(self.settings))
        self.memory("one network, 4 steps", partial(self.own_call, single, 4, 0.0))
        sdxl.add_lora(single.unet, "fast")
        one = {"pair": self.pair(single, "fast"), "prompt": "a dog", "seeds": [0]}
        self.memory("hybrid of one network with a LoRA", partial(dtviz.generate, method="hybrid", **one))
        idle = sum(p.numel() * p.element_size() for p in single.unet.parameters())
        pipe, network = sdxl.pipeline(sdxl.unet(self.settings)), sdxl.unet(self.settings)
        pair = self.pair(pipe, network)
        two = {"pair": pair, "prompt": "a dog", "seeds": [0]}
        distilled, hybrid = (partial(dtviz.generate, method=method, **two) for method in ("distilled", "hybrid"))
        self.memory("hybrid of two networks", hybrid, idle)

        plain = partial(self.own_call, pipe, self.steps, 5.0)
        self.alone(f"plain pipeline, {self.steps} steps with guidance", plain)
        captured = partial(plain, partial(dtviz.capture, pipe))
        self.turns("the same inside dtviz.capture", captured, "plain", plain, 1.01)
        self.alone(f"base, {self.base_steps} steps, guidance 5", partial(dtviz.generate, method="base", **two))
        self.alone("distilled, 4 steps", distilled)
        self.turns("hybrid, k=1, by generate", hybrid, "distilled", distilled, 1.05)
        four = [partial(call, seeds=range(4)) for call in (hybrid, distilled)]
        self.turns("the same, 4 samples together", four[0], "distilled, 4 samples", four[1], 1.05)
        self.alone("hybrid, k=1, at matched sigma", partial(hybrid, handover="matched-sigma"))
        skip = partial(dtviz.generate, method="skip", **two)
        self.turns("skip, 3 steps", skip, "distilled", distilled)

        pipe.scheduler, scheduler = pair.distilled_scheduler, pipe.scheduler
        own = partial(self.own_call, pipe, 4, 0.0)
        inside = partial(own, partial(dtviz.hybrid, pipe, network, k=1))
        self.turns("one's own 4-step call inside dtviz.hybrid", inside, "the same call outside", own, 1.05)
        pipe.scheduler = scheduler

        lora = [partial(dtviz.generate, method=method, **one) for method in ("distilled", "hybrid")]
        self.turns("distilled, one network with a LoRA of rank 64", lora[0], "two networks", distilled)
        self.turns("hybrid, one network with a LoRA of rank 64", lora[1], "two networks", hybrid, 1.1)
        one_sample, eight = (partial(self.evaluation, pipe.unet, batch) for batch in (1, 8))
        self.alone("one evaluation of the base", one_sample)
        self.turns("the same, 8 samples together", eight, "1 sample", one_sample)
        self.turns("the same with the LoRA not fused", partial(self.evaluation, single.unet, 1), "1 sample", one_sample)

        usual = next(row["seconds"] for row in self.rows if row["what"] == "hybrid, k=1, by generate")
        for denoiser in (pipe.unet, network):  # as load(offload=True) does
            denoiser.enable_group_offload(torch.device(DEVICE), offload_type="leaf_level", use_stream=DEVICE == "cuda")
        for call in ("first", "second"):
            seconds = timed(hybrid)
            compared = {"compared_with": "on the GPU", "ratio": seconds / usual, "asked": 2}
            self.add(f"hybrid, offloaded, {call} call", seconds=seconds, **compared)
        self.memory("hybrid of two networks, offloaded", hybrid, idle)
        return self.rows


def main(arguments: list[str]) -> list[dict]:
    tiny = "--tiny" in arguments
    rows = Bench(tiny=tiny).run()
    publish(rows, "gpu", write=DEVICE == "cuda" and not tiny)
    return rows


if __name__ == "__main__":
    main(sys.argv)
