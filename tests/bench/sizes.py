"""What one evaluation takes beside the weights, at full size: `make bench` writes figures/bench/sizes.csv.

The networks are the published ones (`tests/published.py`) on fake tensors, which have sizes and no numbers: every storage that
an evaluation makes is counted while it lives, so the peak is exact for this order of operations, and needs no memory itself.
An accelerator's allocator and its attention kernels' scratch come on top.
"""

from __future__ import annotations

import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dtviz.models.families import FAMILIES
from tests.published import NETWORKS

from .measure import publish


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage(), given)
        return output

    def _follow(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self.known or id(storage) in given:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def inputs(family: str, side: int, batch: int) -> dict:
    """Arguments of one evaluation at `side` x `side` pixels; `vae` ones are the latents alone."""
    cells = side // FAMILIES[family].cell
    half = {"dtype": torch.float16}
    image = torch.zeros(batch, {"sd35": 16, "sana": 32}.get(family, 4), cells, cells, **half)
    time = torch.zeros(batch)
    if family == "sdxl":
        added = {"text_embeds": torch.zeros(batch, 1280, **half), "time_ids": torch.zeros(batch, 6, **half)}
        text = torch.zeros(batch, 77, 2048, **half)
        return {"sample": image, "timestep": time, "encoder_hidden_states": text, "added_cond_kwargs": added}
    if family == "sd15":
        return {"sample": image, "timestep": time, "encoder_hidden_states": torch.zeros(batch, 77, 768, **half)}
    if family == "sd35":
        text, pooled = torch.zeros(batch, 333, 4096, **half), torch.zeros(batch, 2048, **half)
        return {"hidden_states": image, "timestep": time, "encoder_hidden_states": text, "pooled_projections": pooled}
    if family == "flux":
        tokens = (cells // 2) ** 2
        return {
            "hidden_states": torch.zeros(batch, tokens, 64, **half), "timestep": time, "guidance": torch.ones(batch),
            "encoder_hidden_states": torch.zeros(batch, 256, 4096, **half),
            "pooled_projections": torch.zeros(batch, 768, **half),
            "img_ids": torch.zeros(tokens, 3, **half), "txt_ids": torch.zeros(256, 3, **half),
        }  # fmt: skip
    width, tokens = (4096, 120) if family == "pixart" else (2304, 300)
    call = {
        "hidden_states": image,
        "timestep": time,
        "encoder_hidden_states": torch.zeros(batch, tokens, width, **half),
    }
    if family == "pixart":
        call["added_cond_kwargs"] = {
            "resolution": torch.full((batch, 2), 1024.0, **half),
            "aspect_ratio": torch.ones(batch, 1, **half),
        }
    return call


@torch.no_grad()
def peak(network: str, family: str, *, decode: bool, batch: int = 1, side: int = 0) -> int:
    """Peak bytes of one evaluation, or of decoding one image, beside weights and inputs."""
    side = side or FAMILIES[family].size[0]
    dtype = torch.float32 if decode and FAMILIES[family].wide else torch.float16
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        torch.set_default_dtype(dtype)  # fake tensors cannot be cast in place
        try:
            module = NETWORKS[network]().eval()
        finally:
            torch.set_default_dtype(torch.float32)
        call = inputs(family, side, batch)
        if decode:
            channels = {"sd35": 16, "flux": 16, "sana": 32}.get(family, 4)
            latents = torch.zeros(batch, channels, *[side // FAMILIES[family].cell] * 2, dtype=dtype)
        with Live() as live:
            module.decode(latents) if decode else module(**call)
    return live.peak


def main() -> None:
    rows = []
    for name, family in FAMILIES.items():
        if not family.networks:
            continue
        denoiser, vae = family.networks
        cells, pixels = (family.size[0] // family.cell) ** 2, family.size[0] ** 2
        for what, network, decode, unit in (("denoiser", denoiser, False, cells), ("decoding", vae, True, pixels)):
            for batch in (1, 4):
                found = peak(network, name, decode=decode, batch=batch)
                rows.append(
                    {
                        "family": name, "what": what, "side": family.size[0], "batch": batch, "mib": found / 2**20,
                        "bytes_each": found / unit / batch,
                    }
                )  # fmt: skip
    publish(rows, "sizes")


if __name__ == "__main__":
    main()
