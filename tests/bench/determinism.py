"""How much samples change with their batch and with threads: writes figures/bench/determinism.csv.

emoji-dmd, one prompt, ten seeds, float32 on a CPU. Each row against one batch of ten on one thread: the largest difference of
the final latents (their deviation is about one) and of x0, how many samples are equal to the bit, and of the images in eight
bits the share of values that differ, and by how many levels at most.
"""

import pandas as pd
import torch

import dtviz
from dtviz.experiments import tables
from dtviz.files import ROOT

RUNS = {
    "distilled": {"method": "distilled"},
    "base": {"method": "base", "base_steps": 20},
    "hybrid": {"method": "hybrid", "handover": "matched-sigma", "k": 2, "base_steps": 8},
}


def rows(pair: dtviz.Pair, name: str) -> list[dict]:
    """Runs of one method in other batches and on more threads."""
    table, reference = [], None
    for size, threads in [(10, 1), (10, 1), (8, 1), (2, 1), (1, 1)] + [(10, 2)] * (name == "distilled"):
        torch.set_num_threads(threads)
        trace = dtviz.generate(pair, "dog face", seeds=range(10), batch_size=size, **RUNS[name])
        torch.set_num_threads(1)
        images = (dtviz.decode(trace, pair, final=True) * 255).round()
        first, first_images = reference = reference or (trace, images)
        levels = (images - first_images).abs()
        table.append({
            "method": name, "batch_size": size, "threads": threads,
            "final": float((trace.final - first.final).abs().max()), "x0": float((trace.x0 - first.x0).abs().max()),
            "same": sum(torch.equal(a, b) for a, b in zip(trace.final, first.final, strict=True)),
            "values": float((levels > 0).float().mean()), "levels": int(levels.max()),
        })  # fmt: skip
    return table


if __name__ == "__main__":
    pair = dtviz.load("emoji-dmd")
    table = pd.DataFrame([row for name in RUNS for row in rows(pair, name)])
    units = {"final": "latent", "x0": "latent", "values": "1"}
    print(tables.save(table, ROOT / "figures" / "bench" / "determinism.csv", units=units))
