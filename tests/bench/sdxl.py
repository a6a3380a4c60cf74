"""SDXL's pipeline with random weights, made on the device: at its published sizes, or with as many modules at tiny width."""

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..repos import tiny_tokenizer
from .measure import DEVICE

DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32
FULL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "addition_embed_type": "text_time",
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
}  # fmt: skip
SLIM = FULL | {
    "sample_size": 8, "block_out_channels": (32, 32, 32), "attention_head_dim": (2, 2, 2), "cross_attention_dim": 32,
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64,
}  # fmt: skip
TINY = SLIM | {"transformer_layers_per_block": (1, 1, 1), "layers_per_block": 1}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# LCM-LoRA's: rank 64 on every attention, feed-forward and convolution
LORA = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


cast = torch.nn.Module.to  # diffusers' own logs that no module has to stay in float32


def unet(settings: dict) -> diffusers.UNet2DConditionModel:
    """Return a denoiser whose output has the size of its input."""
    with torch.device("meta"):
        denoiser = diffusers.UNet2DConditionModel(**settings)
    denoiser = cast(denoiser, DTYPE).to_empty(device=DEVICE).eval().requires_grad_(False)
    for name, parameter in denoiser.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5)
        else:
            parameter.fill_(name.endswith("weight"))  # 1 for a norm, 0 for a bias
    return denoiser


def pooled_width(denoiser: diffusers.UNet2DConditionModel) -> int:
    """Return the channels of the pooled text."""
    return denoiser.config.projection_class_embeddings_input_dim - 6 * denoiser.config.addition_time_embed_dim


def pipeline(denoiser: diffusers.UNet2DConditionModel) -> diffusers.StableDiffusionXLPipeline:
    """Return a pipeline with tiny text encoders and a tiny autoencoder."""
    tokenizer, width, pooled = tiny_tokenizer(77), denoiser.config.cross_attention_dim, pooled_width(denoiser)
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    sizes |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": pooled}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    parts = {
        "vae": diffusers.AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=1, force_upcast=False, **blocks),
        "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=width // 2, **sizes)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=width // 2, **sizes)),
    }
    parts = {name: cast(part.eval(), DEVICE, DTYPE) for name, part in parts.items()}
    parts |= {"tokenizer": tokenizer, "tokenizer_2": tokenizer, "scheduler": diffusers.EulerDiscreteScheduler(**NOISE)}
    pipe = diffusers.StableDiffusionXLPipeline(unet=denoiser, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_lora(denoiser: diffusers.UNet2DConditionModel, name: str) -> None:
    """Add a random LoRA of rank 64."""
    from peft import LoraConfig

    denoiser.add_adapter(LoraConfig(r=64, target_modules=list(LORA), init_lora_weights="gaussian"), adapter_name=name)
    cast(denoiser, DTYPE).requires_grad_(False)
