"""Memory before loading, against what is really there after it."""

import pytest
import torch

import dtviz
from dtviz import memory
from dtviz.models.families import FAMILIES
from dtviz.pairs import SPECS

from .bench.sizes import Live

GB = 10**9


def loaded(*modules: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", ["emoji-dmd", "emoji-turbo-lora"])
def test_weights_of_embedded_pairs_are_exact(name):
    pair, part = dtviz.load(name, device="cpu"), memory.weights(SPECS[name], item=4)
    assert loaded(pair.pipeline.text_encoder) == part["text"]
    assert loaded(pair.pipeline.vae) == part["vae"]
    if SPECS[name].adapter:
        assert loaded(pair.base) == part["base"] + part["student"]
    else:
        assert (loaded(pair.base), loaded(pair.distilled)) == (part["base"], part["student"])


def test_what_a_run_takes_beside_weights_is_what_was_measured():
    """The embedded pair, every storage of an evaluation and of a decoding counted while it lives; in float32."""
    pair, of = dtviz.load("emoji-dmd", device="cpu"), FAMILIES["emoji"]
    for batch in (1, 4):
        with torch.no_grad(), Live() as live:
            pair.base(torch.randn(batch, 16, 8, 8), torch.tensor(500), torch.randn(batch, 77, 128))
        assert memory.work(of, 64, 64, batch, 4) == pytest.approx(memory.SPARE * live.peak, rel=0.1)
    with torch.no_grad(), Live() as live:
        pair.pipeline.vae.decode(torch.randn(1, 16, 8, 8))
    assert memory.decode(of, 64, 64, 4) == pytest.approx(memory.SPARE * live.peak, rel=0.1)


def test_the_counter_counts_what_lives():
    """Two results of a mebibyte at once, then one; a view is no storage of its own."""
    x = torch.zeros(2**18)
    with Live() as live:
        y = x + 1
        z = (y * 2).view(2, -1)
        del y
        z = z + 1
    assert live.peak == 2 * 2**20
    assert live.now == 2**20


def test_known_sizes():
    """SDXL in half precision: 5.14 GB a denoiser, 1.64 GB of text encoders; a guided batch is two samples."""
    part = memory.weights(SPECS["sdxl-dmd"], item=2)
    assert [round(part[name] / GB, 2) for name in ("base", "student", "text", "vae")] == [5.13, 5.13, 1.64, 0.17]
    together, tiled, offload, model, sequential = memory.ways("sdxl-dmd")
    assert together.accelerator - memory.RESERVED == sum(part.values()) + int(1.2 * 1536 * 1024**2 * 2)
    assert together.accelerator - tiled.accelerator == pytest.approx(1.2 * 1536 * 2 * (1024**2 - 512**2), abs=1)
    assert tiled.accelerator - offload.accelerator == part["student"]
    assert offload.host == part["student"]
    assert model.accelerator < offload.accelerator
    assert sequential.accelerator == offload.accelerator
    assert sequential.host == 0
    alone = memory.ways("sdxl-dmd", guided=False, batch_size=8)[1], memory.ways("sdxl-dmd", batch_size=4)[1]
    assert alone[0].accelerator == alone[1].accelerator


@pytest.mark.parametrize(
    ("name", "room", "expected"),
    [
        ("sdxl-dmd", (24 * GB, 64 * GB), "together"),
        ("sdxl-dmd", (15 * GB, 64 * GB), "tiled"),
        ("sdxl-dmd", (12 * GB, 16 * GB), "offload"),
        ("sdxl-dmd", (7 * GB, 16 * GB), "model offload"),
        ("sdxl-dmd", (12 * GB, 2 * GB), "sequential"),
        ("sdxl-dmd", (None, 40 * GB), "together"),
        ("sdxl-dmd", (None, 18 * GB), "sequential"),  # a whole pair takes 24 GB in float32
        ("sdxl-dmd-lora", (12 * GB, 1 * GB), "together"),
        ("flux-schnell", (80 * GB, 128 * GB), "together"),
        ("flux-schnell", (30 * GB, 128 * GB), "model offload"),
        ("emoji-dmd", (None, GB), "together"),
    ],
)
def test_the_fastest_way_that_fits_is_chosen(name, room, expected):
    way = memory.choose(name, room=room)
    assert way.name == expected
    assert way.fits(*room)
    faster = memory.ways(name, dtype="float32" if room[0] is None else None)
    faster = faster[: [other.name for other in faster].index(expected)]
    assert not any(other.fits(*room) for other in faster)
    assert name in way.how


def test_what_does_not_fit_says_what_it_takes():
    with pytest.raises(
        MemoryError, match=r"'flux-schnell' does not fit: 8.0 GB of memory and 8.0 GB on the accelerator.*model"
    ):
        memory.choose("flux-schnell", room=(8 * GB, 8 * GB))
    with pytest.raises(MemoryError, match=r"'sdxl-dmd' does not fit: 4.0 GB of memory are free.*sequential: 1\d"):
        memory.choose("sdxl-dmd", room=(None, 4 * GB))
    with pytest.raises(ValueError, match="dtype='int8' is not one of float32"):
        memory.ways("sdxl-dmd", dtype="int8")


def test_what_is_free_is_asked_of_the_machine():
    accelerator, host = memory.free()
    assert (accelerator is None) == (not torch.cuda.is_available())
    assert 0 < host < 2**50
