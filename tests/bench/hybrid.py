"""Cost of a hybrid beside its distilled model: `make bench` writes figures/bench/hybrid.csv. Ratios within one run, in turns.

The published hybrid has the distilled model's number of denoiser evaluations. With a distillation LoRA one network has both
roles, and the hybrid only switches the adapter off and on.
"""

from __future__ import annotations

import torch

import dtviz

from .measure import beside, publish

NAMES = ("emoji-dmd", "emoji-dmd-lora")


def seconds(name: str, repeats: int = 15) -> dict:
    """`generate` of the hybrid and of the distilled model, at four evaluations each."""
    pair = dtviz.load(name)
    options = {"seeds": range(10), "handover": "distilled-scheduler"}
    methods = [lambda m=m: dtviz.generate(pair, "dog face", method=m, **options) for m in ("distilled", "hybrid")]
    assert all(sum(method().provenance["nfe"].values()) == 4 for method in methods)
    distilled, hybrid, ratio = beside(*methods, repeats)
    what = f"{name}: hybrid beside distilled model, 4 evaluations, 10 samples"
    return {"what": what, "unit": "s", "distilled": distilled, "hybrid": hybrid, "ratio": ratio}


def weights(name: str) -> dict:
    """Bytes of the denoisers that have to be in memory, beside those of the base alone."""
    pair, alone = dtviz.load(name), dtviz.load("emoji-dmd").base
    both = {pair.base} | ({pair.distilled} if isinstance(pair.distilled, torch.nn.Module) else set())
    one, all_of_it = (
        sum(p.numel() * p.element_size() for network in networks for p in network.parameters()) / 2**20
        for networks in ({alone}, both)
    )
    what = f"{name}: weights of the hybrid's denoisers beside one network's"
    return {"what": what, "unit": "MiB", "distilled": one, "hybrid": all_of_it, "ratio": all_of_it / one}


if __name__ == "__main__":
    publish([*map(seconds, NAMES), *map(weights, NAMES)], "hybrid")
