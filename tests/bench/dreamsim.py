"""Diversity of 100 and 1,000 images beside calling the `dreamsim` package pair by pair: `make bench` writes figures/bench/dreamsim.csv.

The same random weights in the package's layout (type clip_vitb32), the same images at its own 224 px, one process, processor
seconds. All of dtviz's work is timed. Of the 4,950 and 499,500 pairs the first 25 are. Their mean stands for the others: each
costs the same.
"""

import itertools
import math
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch

from dtviz.metrics import diversity
from dtviz.metrics.embedders import embedder

from ..test_metrics_embedders import save_dreamsim
from .measure import publish, row

SIZES, COUNT = (100, 1000), 25


def main() -> None:
    images = torch.rand(max(SIZES), 3, 224, 224, generator=torch.Generator().manual_seed(1))
    pairs, rows = list(itertools.combinations(range(COUNT), 2))[:COUNT], []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_dreamsim(Path(folder))
        from dreamsim import dreamsim

        os.environ["DREAMSIM_CACHE"] = folder
        embed = embedder("dreamsim:clip_vitb32", device="cpu", batch_size=1)
        model, _ = dreamsim(device="cpu", cache_dir=folder, dreamsim_type="clip_vitb32")
        embed(images[:2])
        with torch.inference_mode():
            start = time.process_time()
            theirs = [float(model(images[i : i + 1], images[j : j + 1])) for i, j in pairs]
            each = (time.process_time() - start) / COUNT
        for size in SIZES:
            start = time.process_time()
            features = embed(images[:size])
            value = diversity.mean_pairwise(features).value
            ours, what = time.process_time() - start, f"mean pairwise DreamSim (clip_vitb32) of {size:,} images"
            what += " on a CPU: each embedded once, against pair by pair"
            cost = row(what, "processor s", ours, each * math.comb(size, 2))
            rows.append(cost | {"pairs timed": COUNT, "value": value})
    gap = max(abs(1 - features[i] @ features[j] - d) for (i, j), d in zip(pairs, theirs, strict=True))
    assert gap < 1e-5, gap
    publish(rows, "dreamsim")


if __name__ == "__main__":
    main()
