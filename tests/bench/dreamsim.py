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

from dtviz import diversity
from dtviz.embed import embedder

from ..test_embed import save_adapter
from .measure import publish

SIZES = (100, 1000)


def weights(folder: Path) -> None:
    """A random ViT-B/32, its projection and its adapter, as the package keeps them."""
    from dreamsim.feature_extraction.vision_transformer import vit_base

    torch.manual_seed(0)
    clip = vit_base(patch_size=32)
    clip.pos_drop = torch.nn.LayerNorm(768)
    save_adapter(clip, folder / "clip_vitb32_single_lora")
    state = {name.replace("base_layer.", ""): value for name, value in clip.state_dict().items() if "lora" not in name}
    torch.save({"state_dict": state | {"proj": torch.randn(768, 512) / 28}}, folder / "clip_vitb32_pretrain.pth.tar")


def main() -> None:
    timed = int(sys.argv[sys.argv.index("--pairs") + 1]) if "--pairs" in sys.argv else 25
    images = torch.rand(max(SIZES), 3, 224, 224, generator=torch.Generator().manual_seed(1))
    pairs = list(itertools.combinations(range(timed), 2))[:timed]
    seen, ours = {"dtviz": 0, "package": 0}, {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights(Path(folder))
        from dreamsim import dreamsim

        embed = embedder("dreamsim:clip_vitb32", device="cpu", cache_dir=folder, batch_size=1)
        model, _ = dreamsim(device="cpu", cache_dir=folder, dreamsim_type="clip_vitb32")
        vit = model.base_model.model.extractor_list[0].model
        vit.register_forward_hook(lambda module, inputs, output: seen.update(package=seen["package"] + len(inputs[0])))
        encode = embed._model.encode
        embed._model = embed._model._replace(encode=lambda x: seen.update(dtviz=seen["dtviz"] + len(x)) or encode(x))
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
            row = {
                "what": f"mean pairwise DreamSim (clip_vitb32) of {size:,} images on CPU",
                "unit": unit,
                "dtviz": mine,
            }
            row |= {"pair by pair": theirs, "ratio": theirs / mine}
            table.append(row | {"pairs timed": timed, "value": found, "largest difference of a pair": gap})
    publish(table, "dreamsim")


if __name__ == "__main__":
    main()
