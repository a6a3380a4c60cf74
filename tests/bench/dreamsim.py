"""Diversity of 100 and 1,000 images beside calling the `dreamsim` package pair by pair: `make bench` writes figures/bench/dreamsim.csv.

The same random weights in the package's layout (type clip_vitb32), the same images at its own 224 px, one process, processor
seconds. All of dtviz's work is timed; of the 4,950 and 499,500 pairs the first 25 (`--pairs N`), whose mean
stands for the others: each costs the same.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from dtviz.metrics import diversity
from dtviz.metrics.embedders import embedder

from ..test_metrics_embedders import save_dreamsim
from .measure import publish

SIZES = (100, 1000)


def main() -> None:
    timed = int(sys.argv[sys.argv.index("--pairs") + 1]) if "--pairs" in sys.argv else 25
    images = torch.rand(max(SIZES), 3, 224, 224, generator=torch.Generator().manual_seed(1))
    pairs = list(itertools.combinations(range(timed), 2))[:timed]
    seen, ours = {"dtviz": 0, "package": 0}, {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_dreamsim(Path(folder))
        from dreamsim import dreamsim

        embed = embedder("dreamsim:clip_vitb32", device="cpu", cache_dir=folder, batch_size=1)
        model, _ = dreamsim(device="cpu", cache_dir=folder, dreamsim_type="clip_vitb32")
        vit = model.base_model.model.extractor_list[0].model
        vit.register_forward_hook(lambda module, inputs, output: seen.update(package=seen["package"] + len(inputs[0])))
        encode = embed._network.encode
        count = lambda x: seen.update(dtviz=seen["dtviz"] + len(x)) or encode(x)  # noqa: E731
        embed._network = embed._network._replace(encode=count)
        embed(images[:2])
        for size in SIZES:
            seen["dtviz"] = 0
            start = time.process_time()
            rows = embed(images[:size])
            found = diversity.mean_pairwise(rows).value
            ours[size] = time.process_time() - start, seen["dtviz"], found
        with torch.inference_mode():
            start = time.process_time()
            theirs = [float(model(images[i : i + 1], images[j : j + 1])) for i, j in pairs]
            each = (time.process_time() - start) / timed
    gap = max(abs(1 - rows[i] @ rows[j] - d) for (i, j), d in zip(pairs, theirs, strict=True))
    assert gap < 1e-5, gap
    per_pair, table = seen["package"] / timed, []
    for size, (seconds, ran, found) in ours.items():
        for unit, mine, one in (("images embedded", ran, per_pair), ("processor s", seconds, each)):
            theirs = one * math.comb(size, 2)
            what = f"mean pairwise DreamSim (clip_vitb32) of {size:,} images on CPU"
            row = {"what": what, "unit": unit, "dtviz": mine}
            row |= {"pair by pair": theirs, "ratio": theirs / mine}
            table.append(row | {"pairs timed": timed, "value": found, "largest difference of a pair": gap})
    publish(table, "dreamsim")


if __name__ == "__main__":
    main()
