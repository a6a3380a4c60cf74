"""Tiny random models in the published repositories' layouts: the same pipeline classes, folders and file names.

pipe = BASES[SDXL]()
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from string import ascii_lowercase

import diffusers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from dtviz.models.registry import FLUX, SD15, SD35, SDXL

from .tiny import NO_QUANT, SD, WIDTH, _flow, _model, _unet, _vae


@cache
def tiny_tokenizer(length: int = 16) -> CLIPTokenizer:
    """A byte tokenizer: every letter is a token."""
    letters = [letter + end for end in ("", "</w>") for letter in ascii_lowercase]
    words = {word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return CLIPTokenizer(vocab=words, merges=[], model_max_length=length)


def clip_text(kind: type = CLIPTextModel):
    """A random text encoder for the tokenizer."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(tiny_tokenizer()), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            projection_dim=WIDTH,
        )
    )  # fmt: skip


def _t5(width: int = WIDTH) -> dict:
    """Encoder and tokenizer."""
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(ord("a"), ord("z") + 1))]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=512)
    return {"text_encoder": T5EncoderModel(config), "tokenizer": tokenizer}


def sdxl() -> diffusers.DiffusionPipeline:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 2 * WIDTH}
    return diffusers.StableDiffusionXLPipeline(
        unet=_unet(**added, projection_class_embeddings_input_dim=6 * 8 + WIDTH), text_encoder=clip_text(),
        vae=_vae(force_upcast=False, scaling_factor=0.13025), text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(), scheduler=diffusers.EulerDiscreteScheduler(**SD),
        add_watermarker=False,
    )  # fmt: skip


def sd15() -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionPipeline(
        unet=_unet(), vae=_vae(), text_encoder=clip_text(), tokenizer=tiny_tokenizer(), safety_checker=None,
        scheduler=diffusers.PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=False),
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd35() -> diffusers.DiffusionPipeline:
    width, clip, t5 = 2 * WIDTH, CLIPTextModelWithProjection, _t5(2 * WIDTH)
    sizes = {"joint_attention_dim": width, "pooled_projection_dim": width, "qk_norm": "rms_norm"}
    return diffusers.StableDiffusion3Pipeline(
        transformer=_model("SD3Transformer2DModel", **sizes), scheduler=_flow(shift=3.0), text_encoder=clip_text(clip),
        text_encoder_2=clip_text(clip), text_encoder_3=t5["text_encoder"], tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(), tokenizer_3=t5["tokenizer"], vae=_vae(scaling_factor=1.5305, shift_factor=0.0609, **NO_QUANT),
    )  # fmt: skip


def flux() -> diffusers.DiffusionPipeline:
    t5 = _t5()
    return diffusers.FluxPipeline(
        transformer=_model("FluxTransformer2DModel"), scheduler=_flow(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159, **NO_QUANT), text_encoder=clip_text(),
        text_encoder_2=t5["text_encoder"], tokenizer=tiny_tokenizer(), tokenizer_2=t5["tokenizer"],
    )  # fmt: skip


BASES: dict[str, Callable[[], diffusers.DiffusionPipeline]] = {SDXL: sdxl, SD15: sd15, SD35: sd35, FLUX: flux}


def save_clip(folder: Path, *, length: int) -> None:
    """Save a random CLIP that reads `length` letters and images of 64 px, in transformers' files."""
    letters = tiny_tokenizer(length)
    half = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = half | ends | {"vocab_size": len(letters), "max_position_embeddings": length, "projection_dim": 24}
    vision = half | {"image_size": 64, "patch_size": 16, "projection_dim": 24}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    letters.save_pretrained(folder)
    size, grey = {"height": 64, "width": 64}, [0.5] * 3
    CLIPImageProcessor(size=size, do_center_crop=False, image_mean=grey, image_std=grey).save_pretrained(folder)
