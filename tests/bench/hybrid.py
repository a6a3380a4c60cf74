"""What a hybrid costs beside its student: `make bench` writes figures/bench/hybrid.csv. Ratios within one run, in turns.

The published hybrid has the student's own number of denoiser evaluations; with a distillation LoRA one network plays both
parts, and what it needs more than the student alone is switching the adapter off and on.
"""

from __future__ import annotations

import torch

import dtviz

from .measure import beside, publish


def seconds(name: str, repeats: int = 15) -> dict:
    """`generate` with the hybrid against the same with the student, at four evaluations each."""
    pair = dtviz.load(name)
    options = {"seeds": range(10), "handover": "distilled-scheduler"}
    methods = [lambda m=m: dtviz.generate(pair, "dog face", method=m, **options) for m in ("distilled", "hybrid")]
    for method in methods:
        assert sum(method().provenance["nfe"].values()) == 4
    student, hybrid, ratio = beside(*methods, repeats)
    told = {"what": f"{name}: hybrid beside student, 4 evaluations, 10 samples", "unit": "s"}
    return told | {"student": student, "hybrid": hybrid, "ratio": ratio}


def weights(name: str) -> dict:
    """Bytes of the denoisers that have to be in memory, beside those of the base alone."""
    pair, alone = dtviz.load(name), dtviz.load("emoji-dmd").base
    networks = {pair.base} | ({pair.distilled} if isinstance(pair.distilled, torch.nn.Module) else set())
    size = [
        sum(p.numel() * p.element_size() for n in those for p in n.parameters()) / 2**20
        for those in ([alone], networks)
    ]
    what = f"{name}: weights of the hybrid's denoisers beside one network's"
    return {"what": what, "unit": "MiB", "student": size[0], "hybrid": size[1], "ratio": size[1] / size[0]}


def main() -> None:
    names = ("emoji-dmd", "emoji-dmd-lora")
    publish([*(seconds(name) for name in names), *(weights(name) for name in names)], "hybrid")


if __name__ == "__main__":
    main()
