"""Ways to be quicker that dtviz could take, each beside what it does: `make bench` writes figures/bench/options.csv.

Ratios within one run, in turns: above 1 the way is quicker. Of emoji-base, and of one evaluation of SDXL's denoiser at full size where
that decides. What was gained here is taken; what was not is left out, and this is why.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import dtviz
from dtviz.decode import decode_latents

from .measure import beside, publish, timed
from .memory import DEVICE, DTYPE, unet

SAMPLES, RUNS = 10, 4


def turns(what: str, usual, other, repeats: int = 7, start: float = 0.0) -> dict:
    """One row: medians, and the median of the turns' ratios. `start` is what the other way takes once, before it can begin."""
    usual(), other()
    was, instead, ratio = beside(usual, other, repeats)
    return {"what": what, "unit": "s", "usual": was, "other": instead, "gain": 1 / ratio, "start": start}


def embedded() -> list[dict]:
    """Of generating and decoding with emoji-base, twenty steps with guidance."""
    pair, plain = dtviz.load("emoji-dmd"), dtviz.load("emoji-dmd")
    embed = dtviz.embedder("efficientnet-lite0")
    run = {"prompt": "dog face", "method": "base"}

    def sample(of: dtviz.Pair, first: int = 0) -> torch.Tensor:
        return dtviz.generate(of, **run, seeds=range(first, first + SAMPLES)).x0

    def measure(latents: torch.Tensor) -> None:
        embed(decode_latents(latents.flatten(0, 1), plain))

    def inference() -> None:
        with torch.inference_mode():
            sample(plain)

    def one_after_the_other() -> None:
        for number in range(RUNS):
            measure(sample(plain, number * SAMPLES))

    def overlapped() -> None:
        with ThreadPoolExecutor(1) as worker:
            for waiting in [worker.submit(measure, sample(plain, number * SAMPLES)) for number in range(RUNS)]:
                waiting.result()

    pipe = plain.pipeline

    def encode(samples: int) -> None:
        with torch.no_grad():
            pipe.encode_prompt(["dog face"] * samples, pipe._execution_device, 1, True)

    rows = [
        turns("emoji-base, 10 samples: inference mode, for no_grad", lambda: sample(plain), inference),
        turns(
            "the text of 10 samples of one prompt: encoded once, for ten times", lambda: encode(10), lambda: encode(1)
        ),
        turns(
            f"emoji-base, {RUNS} runs: decoded and embedded while the next is sampled, for after it",
            one_after_the_other,
            overlapped,
            repeats=3,
        ),
    ]
    pair.base.to(memory_format=torch.channels_last)
    rows.append(turns("emoji-base, 10 samples: channels last", lambda: sample(plain), lambda: sample(pair)))
    pair.base.to(memory_format=torch.contiguous_format)
    pair.base.compile()
    start = timed(lambda: sample(pair))
    rows.append(
        turns("emoji-base, 10 samples: torch.compile", lambda: sample(plain), lambda: sample(pair), start=start)
    )
    return rows


@torch.no_grad()
def sdxl() -> dict:
    """Of one evaluation of a denoiser of SDXL's size."""
    denoiser, last = unet(), unet().to(memory_format=torch.channels_last)
    options = {"device": DEVICE, "dtype": DTYPE}
    side = 1024 if DEVICE == "cuda" else 512
    x, text = torch.randn(1, 4, side // 8, side // 8, **options), torch.randn(1, 77, 2048, **options)
    added = {"text_embeds": torch.randn(1, 1280, **options), "time_ids": torch.zeros(1, 6, **options)}

    def call(network):
        return lambda: network(x, torch.tensor(500, device=DEVICE), text, added_cond_kwargs=added)

    what = f"SDXL's UNet at {side} px, {str(DTYPE).removeprefix('torch.')} on {DEVICE}: channels last"
    return turns(what, call(denoiser), call(last), repeats=3)


def main() -> None:
    rows = embedded()
    publish(rows if "--embedded" in sys.argv else [*rows, sdxl()], "options")


if __name__ == "__main__":
    main()
