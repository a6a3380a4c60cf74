"""Tiny random models in diffusers' own classes, built offline."""

import json
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import dtviz
from dtviz.controls.control import DOWN, UP

from .tiny import SD, tiny_unet

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
        pooled = config.projection_class_embeddings_input_dim - config.addition_time_embed_dim
        added = {
            "added_cond_kwargs": {
                "text_embeds": torch.randn(1, pooled, generator=generator),
                "time_ids": torch.ones(1, 1),
            }
        }
    side = 2 ** len(config.block_out_channels)
    sample = torch.randn(1, config.in_channels, side, side, generator=generator)
    text = torch.randn(1, 4, config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(sample, 500, text, **added)[0]


@cache
def tiny_tokenizer() -> CLIPTokenizer:
    """A byte tokenizer: every letter is a token. Made from files, which old and new transformers read."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    """A tiny random Stable Diffusion pipeline with a DDIM scheduler."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=tiny_unet(1),
        scheduler=DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pair(pipe: StableDiffusionPipeline) -> dtviz.Pair:
    """A base and a distilled model with other random weights, DMD2's scheduler and timesteps."""
    return dtviz.Pair(
        pipe,
        tiny_unet(2),
        distilled_scheduler=LCMScheduler.from_config(pipe.scheduler.config),
        timesteps=(999, 749, 499, 249),
        base_steps=8,
        base_guidance=3.0,
        batch_size=2,
    )
