"""Tiny random models in the published repositories' layouts: the same pipeline classes, folders and file names.

unet = BASES[SDXL](tmp_path / "base")      # saves the whole pipeline there, and returns its denoiser
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from dtviz.models.registry import FLUX, PIXART, SANA, SD15, SD35, SDXL

from .conftest import tiny_tokenizer

WIDTH = 32  # of every text encoder
VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def _clip(kind: type = CLIPTextModel):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tiny_tokenizer()), hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            projection_dim=WIDTH, hidden_act="gelu",
        )
    )  # fmt: skip


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
    )


def _t5_tokenizer() -> T5Tokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=512)


def _vae(channels: int = 4, **config) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, latent_channels=channels, sample_size=16, **config,
    )  # fmt: skip


def _unet(**config) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **config,
    )  # fmt: skip


def sdxl(folder: Path) -> torch.nn.Module:
    unet = _unet(
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )  # fmt: skip
    diffusers.StableDiffusionXLPipeline(
        vae=_vae(force_upcast=False, scaling_factor=0.13025), text_encoder=_clip(),
        text_encoder_2=_clip(CLIPTextModelWithProjection), tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(),
        unet=unet, scheduler=diffusers.EulerDiscreteScheduler(**VP),
    ).save_pretrained(folder)  # fmt: skip
    return unet


def sd15(folder: Path) -> torch.nn.Module:
    unet = _unet(cross_attention_dim=WIDTH)
    diffusers.StableDiffusionPipeline(
        vae=_vae(), text_encoder=_clip(), tokenizer=tiny_tokenizer(), unet=unet,
        scheduler=diffusers.PNDMScheduler(**VP, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return unet


def sd35(folder: Path) -> torch.nn.Module:
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=16, out_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, qk_norm="rms_norm",
        pos_embed_max_size=16,
    )  # fmt: skip
    diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(CLIPTextModelWithProjection), text_encoder_2=_clip(CLIPTextModelWithProjection),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=64, d_model=2 * WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
        ),
        tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(), tokenizer_3=_t5_tokenizer(),
    ).save_pretrained(folder)  # fmt: skip
    return transformer


def flux(folder: Path) -> torch.nn.Module:
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
        ),
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(), text_encoder_2=_t5(), tokenizer=tiny_tokenizer(), tokenizer_2=_t5_tokenizer(),
    ).save_pretrained(folder)  # fmt: skip
    return transformer


def pixart(folder: Path) -> torch.nn.Module:
    transformer = PixArtTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=8, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, caption_channels=WIDTH, use_additional_conditions=False,
    )  # fmt: skip
    diffusers.PixArtAlphaPipeline(
        transformer=transformer, vae=_vae(scaling_factor=0.13025), text_encoder=_t5(), tokenizer=_t5_tokenizer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    ).save_pretrained(folder)  # fmt: skip
    return transformer


def sana_transformer(**config) -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDTH,
        sample_size=8, **config,
    )  # fmt: skip


def sana_parts() -> dict:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "▁", *letters])}
    return {
        "vae": AutoencoderDC(
            latent_channels=4, attention_head_dim=8, encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), scaling_factor=0.41407,
        ),
        "text_encoder": Gemma2Model(
            Gemma2Config(
                vocab_size=len(words), hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
            )
        ),
        "tokenizer": GemmaTokenizer(vocab=words, merges=[]),
    }  # fmt: skip


def sana(folder: Path) -> torch.nn.Module:
    transformer = sana_transformer()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    diffusers.SanaPipeline(transformer=transformer, scheduler=scheduler, **sana_parts()).save_pretrained(folder)
    return transformer


BASES: dict[str, Callable[[Path], torch.nn.Module]] = {
    SDXL: sdxl, SD15: sd15, SD35: sd35, FLUX: flux, PIXART: pixart, SANA: sana,
}  # fmt: skip
