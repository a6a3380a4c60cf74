"""The published repositories' networks, from their configs, on no device: they have sizes and no numbers.

unet = build("sdxl unet")        # 2.6 billion parameters in no memory
"""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 1024,
}
_VAE16 = _VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_CLIP_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
_CLIP_G = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280,
}  # fmt: skip
_T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_GEMMA = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256,
}  # fmt: skip

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "sdxl unet": lambda: diffusers.UNet2DConditionModel(**SDXL_UNET),
    "sd15 unet": lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
    "sd35 transformer": lambda: diffusers.SD3Transformer2DModel(
        sample_size=128, num_layers=38, num_attention_heads=38, caption_projection_dim=2432, out_channels=16,
        pos_embed_max_size=192, qk_norm="rms_norm",
    ),
    "flux transformer": lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
    "pixart transformer": lambda: diffusers.PixArtTransformer2DModel(
        sample_size=128, interpolation_scale=2, use_additional_conditions=True, caption_channels=4096
    ),
    "sana transformer": lambda: diffusers.SanaTransformer2DModel(),
    "sd vae": lambda: diffusers.AutoencoderKL(**_VAE),
    "sd35 vae": lambda: diffusers.AutoencoderKL(**_VAE16),
    "sana vae": lambda: diffusers.AutoencoderDC(
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3,) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    ),
    "clip-l": lambda: CLIPTextModel(CLIPTextConfig(**_CLIP_L)),
    "clip-l projected": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**_CLIP_L)),
    "clip-g": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**_CLIP_G)),
    "t5-xxl": lambda: T5EncoderModel(T5Config(**_T5)),
    "gemma-2-2b": lambda: Gemma2Model(Gemma2Config(**_GEMMA)),
}  # fmt: skip


def build(name: str) -> torch.nn.Module:
    """This network without memory for its weights."""
    with torch.device("meta"):
        return NETWORKS[name]()


def parameters(name: str) -> int:
    """How many parameters it has."""
    return sum(p.numel() for p in build(name).parameters())
