"""How far samples move with the batch they are in and with the threads: writes figures/bench/determinism.csv.

python -m tests.bench.determinism

emoji-dmd, one prompt, ten seeds, float32 on a CPU. Each row against one batch of ten on one thread: the largest difference of the
final latents (their deviation is about one) and of the plans, how many samples are the same to the bit, and of the images in
eight bits the share of values that differ, and by how many levels at most.
"""

from pathlib import Path

import pandas as pd
import torch

import dtviz
from dtviz import table

ROOT = Path(__file__).parents[2]
SEEDS = range(10)
RUNS = {
    "distilled": {"method": "distilled"},
    "base": {"method": "base", "base_steps": 20},
    "hybrid": {"method": "hybrid", "handover": "matched-sigma", "k": 2, "base_steps": 8},
}


def row(pair: dtviz.Pair, name: str, size: int, threads: int, reference: tuple) -> dict[str, object]:
    """One line of the table."""
    torch.set_num_threads(threads)
    trace = dtviz.generate(pair, "dog face", seeds=SEEDS, batch_size=size, **RUNS[name])
    torch.set_num_threads(1)
    images = (dtviz.decode(trace, pair, final=True) * 255).round()
    if not reference:
        reference += [trace, images]
    first, drawn = reference
    levels = (images - drawn).abs()
    same = [torch.equal(a, b) for a, b in zip(trace.final, first.final, strict=True)]
    return {
        "method": name, "batch_size": size, "threads": threads,
        "final": float((trace.final - first.final).abs().max()), "plans": float((trace.x0 - first.x0).abs().max()),
        "same": sum(same), "values": float((levels > 0).float().mean()), "levels": int(levels.max()),
    }  # fmt: skip


if __name__ == "__main__":
    pair, rows = dtviz.load("emoji-dmd"), []
    for name in RUNS:
        reference: list = []
        settings = [(10, 1), (10, 1), (8, 1), (2, 1), (1, 1)] + [(10, 2)] * (name == "distilled")
        for size, threads in settings:
            rows.append(row(pair, name, size, threads, reference))
            print(rows[-1], flush=True)
    units = {"final": "latent", "plans": "latent", "values": "1"}
    print(table.save(pd.DataFrame(rows), ROOT / "figures" / "bench" / "determinism.csv", units=units))
