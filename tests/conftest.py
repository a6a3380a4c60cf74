"""Tiny random models in diffusers' own classes, built offline."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline

import dtviz
from dtviz.controls.control import DOWN, UP
from dtviz.controls.train import CROSS_ATTENTION

from .repos import clip_text, tiny_tokenizer
from .tiny import SD, _vae, add_lora, tiny_unet

torch.set_num_threads(1)


def random_factors(unet, seed: int = 0) -> dict[str, torch.Tensor]:
    """LoRA factors for all attention layers, some feed-forward layers and convolutions, of two ranks, by tensor name."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in unet.named_modules():
        kind = type(module).__name__
        if not (kind == "Linear" and (".attn" in name or ".ff.net.0" in name)) and not name.endswith("resnets.0.conv1"):
            continue
        rank, weight = (2 if "mid_block" in name else 4), module.weight
        tail = (1,) * (weight.ndim - 2)
        tensors[name + DOWN] = torch.randn((rank, *weight.shape[1:]), generator=generator) / 4
        tensors[name + UP] = torch.randn((len(weight), rank, *tail), generator=generator) / 4
    return tensors


def change(control, module: str) -> torch.Tensor:
    """Change of a module's weight at scale 1."""
    return torch.einsum("or,ri...->oi...", control.tensors[module + UP].flatten(1), control.tensors[module + DOWN])


def answer(unet) -> torch.Tensor:
    """Output of a UNet for one small random input, always the same."""
    generator, config, added = torch.Generator().manual_seed(0), unet.config, {}
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - config.addition_time_embed_dim
        pooled = torch.randn(1, width, generator=generator)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.ones(1, 1)}}
    side = 2 ** len(config.block_out_channels)
    sample = torch.randn(1, config.in_channels, side, side, generator=generator)
    text = torch.randn(1, 4, config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(sample, 500, text, **added)[0]


def snapshot(*networks: torch.nn.Module) -> list:
    """Everything about networks that a block could leave changed."""
    modules = [(name, type(module), len(module._forward_hooks)) for n in networks for name, module in n.named_modules()]
    flags = [(name, p.requires_grad, p.grad is None) for n in networks for name, p in n.named_parameters()]
    return [modules, flags, [value.clone() for n in networks for value in n.state_dict().values()]]


def assert_same(before: list, after: list) -> None:
    assert before[:2] == after[:2]
    assert all(torch.equal(x, y) for x, y in zip(before[2], after[2], strict=True))


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    """A tiny random Stable Diffusion pipeline with a DDIM scheduler."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=_vae(block_out_channels=(8, 16), sample_size=16).eval(), text_encoder=clip_text().eval(), unet=tiny_unet(1),
        tokenizer=tiny_tokenizer(), scheduler=DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pair(pipe: StableDiffusionPipeline) -> dtviz.Pair:
    """A base and a distilled model with other random weights, DMD2's scheduler and timesteps."""
    settings = {"timesteps": (999, 749, 499, 249), "base_steps": 8, "base_guidance": 3.0, "batch_size": 2}
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return dtviz.Pair(pipe, tiny_unet(2), distilled_scheduler=scheduler, **settings)


@pytest.fixture
def one_network(pipe) -> dtviz.Pair:
    """A pair whose distilled model is a LoRA on the base, switched off as `dtviz.load` leaves it."""
    add_lora(pipe.unet, "distilled", modules=CROSS_ATTENTION)
    pipe.unet.disable_adapters()
    pipe.unet.requires_grad_(False)
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return dtviz.Pair(pipe, "distilled", distilled_scheduler=scheduler, base_steps=8, base_guidance=3.0)


@pytest.fixture(scope="session")
def emoji() -> dtviz.Pair:
    """The shipped pair, loaded once. Tests leave it as it is."""
    return dtviz.load("emoji-dmd")


@pytest.fixture(scope="session")
def lite():
    return dtviz.embedder("efficientnet-lite0", device="cpu", batch_size=2)
