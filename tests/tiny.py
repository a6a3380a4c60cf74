"""Tiny random diffusers pipelines of many families, built offline from settings, each with one short call.

tiny = PIPELINES["flux"]()
latents = tiny.run("latent")
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

WIDTH = 16  # of the prompt embeddings, plain and pooled


@dataclass(frozen=True)
class Tiny:
    """A pipeline and one short call of it."""

    pipe: diffusers.DiffusionPipeline
    call: dict[str, Any]  # without generator, output_type and num_images_per_prompt
    steps: int = 4  # of the sampler; Heun's and PNDM's call scheduler.step 2 * steps - 1 and steps + 1 times
    latent: str | None = "latent"  # output_type of the final latents; None: the pipeline cannot return them
    images: str | None = "pt"  # output_type of images in [0, 1] as arrays or tensors; None: the pipeline makes none
    field: str = "images"  # of the output
    size: tuple[int, ...] | None = None  # what `decode` needs for packed latents

    @property
    def denoiser(self) -> str:
        """The pipeline's attribute that holds the denoiser."""
        return "unet" if getattr(self.pipe, "unet", None) is not None else "transformer"

    def run(self, output_type: str | None, **options: Any):
        """Make the call with seed 0."""
        options |= {"output_type": output_type} if output_type else {}
        return getattr(self.pipe(**self.call | options, generator=torch.Generator().manual_seed(0)), self.field)


# fmt: off
# Small values of settings, for every class that has them
SMALL: dict[str, Any] = {
    **dict.fromkeys(("num_layers", "num_single_layers", "layers_per_block", "num_res_blocks"), 1),
    **dict.fromkeys(("num_attention_heads", "num_cross_attention_heads", "temporal_compression_ratio"), 2),
    **dict.fromkeys(("latent_channels", "z_dim", "norm_num_groups", "max_text_seq_length"), 4),
    **dict.fromkeys(("sample_size", "sample_width", "sample_height", "attention_head_dim", "cross_attention_head_dim", "base_dim"), 8),
    **dict.fromkeys(("cross_attention_dim", "caption_projection_dim", "time_embed_dim", "freq_dim", "ffn_dim"), 16),
    **dict.fromkeys(("joint_attention_dim", "pooled_projection_dim", "caption_channels", "text_dim", "text_embed_dim"), WIDTH),
    "rope_max_seq_len": 32, "sample_frames": 5, "block_out_channels": (8, 8),
}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
STATISTICS = {"latents_mean": [-0.7571, -0.7089, -0.9113, 0.1075], "latents_std": [2.8184, 1.4541, 2.3275, 2.6558]}
PLAYGROUND = {"scaling_factor": 0.5, "latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
PACKED = {"in_channels": 16, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
VIDEO_VAE = STATISTICS | {"dim_mult": [1, 2], "temperal_downsample": [True]}
# Further settings that a class needs
MODELS: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": PACKED | {"out_channels": 16, "guidance_embeds": True},
    "QwenImageTransformer2DModel": PACKED,
    "CogVideoXTransformer3DModel": {"attention_head_dim": 16},
    "WanTransformer3DModel": {"attention_head_dim": 12},
    "AutoencoderDC": {
        "scaling_factor": 0.41407,
        **{f"{side}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock") for side in ("encoder", "decoder")},
        **{f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")},
        **{f"{side}_layers_per_block": (1, 1, 1) for side in ("encoder", "decoder")},
        **{f"{side}_qkv_multiscales": ((), (), (5,)) for side in ("encoder", "decoder")},
    },
    "UNet2DConditionModel": {
        "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2, "norm_num_groups": 8, "num_attention_heads": None,
    },
    "AutoencoderKL": {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
    "AutoencoderKLQwenImage": VIDEO_VAE,
    "AutoencoderKLWan": VIDEO_VAE | {"scale_factor_temporal": 2, "scale_factor_spatial": 2},
    "AutoencoderKLCogVideoX": {
        "down_block_types": ("CogVideoXDownBlock3D",) * 2, "up_block_types": ("CogVideoXUpBlock3D",) * 2,
        "sample_height": 16, "sample_width": 16, "scaling_factor": 1.15258426,
    },
    "AutoencoderKLLTXVideo": {
        "down_block_types": ("LTXVideoDownBlock3D",) * 2, "decoder_block_out_channels": (8, 8), "layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1), "spatio_temporal_scaling": (True, False), "upsample_factor": (1, 1),
        "decoder_spatio_temporal_scaling": (True, False), "decoder_inject_noise": (False,) * 3, "upsample_residual": (False, False),
        "downsample_type": ("conv", "conv"), "scaling_factor": 0.5,
    },
    "VQModel": {
        "block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), "vq_embed_dim": 4, "num_vq_embeddings": 16,
        "norm_num_groups": 32, "norm_type": "spatial",
    },
    "UNet2DModel": {
        "sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "StableCascadeUNet": {
        "in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 16,
        "block_out_channels": (16, 16), "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1), "clip_text_pooled_in_channels": WIDTH,
    },
}
KANDINSKY_UNET = {
    "out_channels": 8, "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift", "addition_embed_type": "image", "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "image_proj", "class_embed_type": None,
}
# fmt: on


def _model(name: str, **changes: Any) -> torch.nn.Module:
    kind = getattr(diffusers.models, name)
    small = SMALL | ({"in_channels": 4, "out_channels": 4} if "Transformer" in name else {})
    settings = {key: value for key, value in small.items() if key in inspect.signature(kind).parameters}
    return kind(**settings | MODELS.get(name, {}) | changes)


def _scheduler(name: str, **config: Any) -> Any:
    return getattr(diffusers, f"{name}Scheduler")(**config)


_unet, _vae = partial(_model, "UNet2DConditionModel"), partial(_model, "AutoencoderKL")
_flow = partial(_scheduler, "FlowMatchEulerDiscrete")
_image = partial(torch.rand, 1, 3, 16, 16)


def tiny_unet(seed: int, **config: Any) -> diffusers.UNet2DConditionModel:
    """A random two-level denoiser on 4-channel 8x8 latents."""
    torch.manual_seed(seed)
    return _unet(**config).eval()


def add_lora(network, name: str, *, modules=("to_q", "to_v", "conv1"), seed: int = 0, **options) -> None:
    """Add a random adapter of rank 2 and switch it on."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=1, target_modules=list(modules), init_lora_weights=False, **options)
    with warnings.catch_warnings(action="ignore"):  # peft's, about a second adapter
        network.add_adapter(config, adapter_name=name)


def _fill_zeros(module: torch.nn.Module) -> torch.nn.Module:
    """Random numbers where a fresh module has zeros, so that no branch of it is dead."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return module


def _pipeline(name: str, **parts: Any) -> diffusers.DiffusionPipeline:
    """A pipeline without the parts that are not given: text encoders and tokenizers."""
    kind = getattr(diffusers, f"{name}Pipeline")
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return kind(**dict.fromkeys(needed) | parts)


def _prompt(*, guided: bool = True, pooled: str = "", mask: str = "") -> dict[str, torch.Tensor]:
    """Random embeddings in place of a prompt, and in place of a negative one where there is guidance."""
    call = {}
    for side in ("", "negative_")[: 1 + guided]:
        call[f"{side}prompt_embeds"] = torch.randn(1, 4, WIDTH)
        if pooled:
            call[side + pooled] = torch.randn(1, WIDTH)
        if mask:
            call[side + mask] = torch.ones(1, 4, dtype=torch.long)
    return call


STEPS = {"num_inference_steps": 4, "guidance_scale": 3.0}


def _sd(scheduler: str = "DDIM", kind: str = "StableDiffusion", *, guidance: float = 1.0, unet=None, **config) -> Tiny:
    parts = {"unet": _unet(**(unet or {})), "scheduler": _scheduler(scheduler, **SD, **config)}
    if "ControlNet" in kind:
        net = diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8, 16))
        parts["controlnet"] = _fill_zeros(net)
    parts["vae"] = _vae()
    call = _prompt(guided=scheduler != "LCM") | STEPS | {"guidance_scale": guidance}
    call |= {"image": _image()} if "controlnet" in parts else {}
    return Tiny(_pipeline(kind, **parts, requires_safety_checker=False), call)


def _sdxl(kind: str = "", *, steps: int = 4, time_ids: int = 6, vae=None, options=None, inputs=dict, **call) -> Tiny:
    """`steps` are those that run. The VAE is not upcast: diffusers logs a line whenever SDXL's own is."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = _unet(**added, projection_class_embeddings_input_dim=8 * time_ids + WIDTH)
    parts = {"unet": unet, "vae": _vae(**{"scaling_factor": 0.13025, "force_upcast": False} | (vae or {}))}
    parts |= {"scheduler": _scheduler("EulerDiscrete", **SD, timestep_spacing="leading"), "add_watermarker": False}
    pipe = _pipeline(f"StableDiffusionXL{kind}", **parts, **(options or {}))
    return Tiny(pipe, _prompt(pooled="pooled_prompt_embeds") | STEPS | call | inputs(), steps)


def _masked() -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12] = 1
    return {"image": _image(), "mask_image": mask}


def _transformer(
    name: str, model: str, scheduler, vae, *, guided=True, pooled="", mask="", config=None, tiny=None, **call
) -> Tiny:
    parts = {"transformer": _model(model, **(config or {})), "scheduler": scheduler, "vae": vae()}
    prompt = _prompt(guided=guided, pooled=pooled, mask=mask)
    return Tiny(_pipeline(name, **parts), prompt | STEPS | call, **(tiny or {}))


def _ltx_vae() -> diffusers.AutoencoderKLLTXVideo:
    """It keeps the mean and the deviation of the latents in buffers, not in its config."""
    vae = _model("AutoencoderKLLTXVideo")
    for name, values in STATISTICS.items():
        getattr(vae, name).copy_(torch.tensor(values))
    return vae


def _kandinsky22() -> Tiny:
    """Its "pt" images stay in [-1, 1] and unclamped; "np" is an image."""
    movq = _model("VQModel")
    movq.decoder.conv_out.weight.data *= 0.2  # few pixels outside of [0, 1]
    betas = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = _scheduler("DDPM", **betas, variance_type="learned_range", clip_sample=False)
    pipe = _pipeline("KandinskyV22", unet=_unet(**KANDINSKY_UNET), scheduler=scheduler, movq=movq)
    embeds = {"image_embeds": torch.randn(1, WIDTH), "negative_image_embeds": torch.randn(1, WIDTH)}
    return Tiny(pipe, embeds | STEPS | {"height": 16, "width": 16}, images="np")


def _cascade_prompt() -> dict[str, torch.Tensor]:
    call = _prompt()
    return call | {f"{name}_pooled": torch.randn(1, 1, WIDTH) for name in call}


def _cascade_prior() -> Tiny:
    """It makes image embeddings of 4 channels, the latents; its text encoder only says which dtype they have."""
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    clip = {"clip_text_in_channels": WIDTH, "clip_image_in_channels": 8}
    prior = _fill_zeros(_model("StableCascadeUNet", **clip, switch_level=(False,)))
    parts = {"text_encoder": CLIPTextModelWithProjection(text), "prior": prior}
    pipe = _pipeline("StableCascadePrior", **parts, scheduler=_scheduler("DDPMWuerstchen"))
    call = _cascade_prompt() | STEPS | {"height": 256, "width": 256}
    return Tiny(pipe, call, latent="pt", images=None, field="image_embeddings")


def _cascade() -> Tiny:
    vqgan = _fill_zeros(PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=16))
    vqgan.out_block[0].weight.data *= 0.01  # few pixels outside of [0, 1], to which it clamps them as they are
    vqgan.out_block[0].bias.data += 0.5
    inputs = {"patch_size": 2, "effnet_in_channels": 4, "timestep_conditioning_type": ("sca",)}
    decoder = _fill_zeros(_model("StableCascadeUNet", **inputs))
    pipe = _pipeline("StableCascadeDecoder", decoder=decoder, vqgan=vqgan, scheduler=_scheduler("DDPMWuerstchen"))
    call = _cascade_prompt() | STEPS | {"image_embeddings": torch.randn(1, 4, 1, 1), "guidance_scale": 1.5}
    return Tiny(pipe, call)


# fmt: off
MASK = {"mask": "prompt_attention_mask"}
SQUARE = {"height": 16, "width": 16}
VIDEO = SQUARE | {"num_frames": 5}
SANA_VAE = partial(_model, "AutoencoderDC")
FAMILIES: dict[str, Callable[[], Tiny]] = {
    "sd": partial(_sd, clip_sample=False, set_alpha_to_one=False),
    "sd-guided": partial(_sd, guidance=3.0, clip_sample=False, set_alpha_to_one=False),
    "lcm": partial(_sd, "LCM", "LatentConsistencyModel", guidance=8.5, unet={"time_cond_proj_dim": 8}),
    "sd-controlnet": partial(_sd, "UniPCMultistep", "StableDiffusionControlNet", guidance=3.0),
    "sdxl": _sdxl,
    "sdxl-base-to-refiner": partial(_sdxl, num_inference_steps=8, denoising_end=0.5),
    "sdxl-refiner": partial(
        _sdxl, "Img2Img", time_ids=5, options={"requires_aesthetics_score": True}, denoising_start=0.5, num_inference_steps=8,
        inputs=lambda: {"image": torch.randn(1, 4, 8, 8)},
    ),
    # with the mean and the deviation of the latents in the VAE's config, as Playground v2.5 has them
    "sdxl-img2img": partial(
        _sdxl, "Img2Img", vae=PLAYGROUND, steps=3, num_inference_steps=5, inputs=lambda: {"image": _image()}, strength=0.6,
    ),
    "sdxl-inpaint": partial(_sdxl, "Inpaint", inputs=_masked, strength=1.0, **SQUARE),
    "sd3": lambda: _transformer(
        "StableDiffusion3", "SD3Transformer2DModel", _flow(shift=3.0),
        partial(_vae, scaling_factor=1.5305, shift_factor=0.0609, **NO_QUANT), pooled="pooled_prompt_embeds",
    ),
    "flux": lambda: _transformer(
        "Flux", "FluxTransformer2DModel", _flow(shift=3.0, use_dynamic_shifting=True),
        partial(_vae, scaling_factor=0.3611, shift_factor=0.1159, **NO_QUANT), guided=False, pooled="pooled_prompt_embeds",
        height=16, width=24, guidance_scale=3.5, tiny={"size": (16, 24)},
    ),
    "qwenimage": lambda: _transformer(
        "QwenImage", "QwenImageTransformer2DModel", _flow(use_dynamic_shifting=True), partial(_model, "AutoencoderKLQwenImage"),
        mask="prompt_embeds_mask", height=16, width=24, guidance_scale=None, true_cfg_scale=3.0, tiny={"size": (16, 24)},
    ),
    # Sana takes a negative prompt of "" for granted, and none beside negative embeddings
    "sana": lambda: _transformer(
        "Sana", "SanaTransformer2DModel",
        _scheduler("DPMSolverMultistep", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        SANA_VAE, **MASK, use_resolution_binning=False, negative_prompt=None, height=32, width=32,
    ),
    "sana-sprint": lambda: _transformer(
        "SanaSprint", "SanaTransformer2DModel", _scheduler("SCM"), SANA_VAE, guided=False, **MASK,
        config={"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}, tiny={"steps": 3}, num_inference_steps=3,
        guidance_scale=4.5, intermediate_timesteps=None, use_resolution_binning=False, height=32, width=32,
    ),
    "kandinsky22": _kandinsky22,
    "cascade-prior": _cascade_prior,
    "cascade": _cascade,
    "ddim-pixels": lambda: Tiny(
        diffusers.DDIMPipeline(_model("UNet2DModel"), _scheduler("DDIM")), {"num_inference_steps": 4}, latent=None
    ),
    # CogVideoX's latents have the frames before the channels
    "cogvideox": lambda: _transformer(
        "CogVideoX", "CogVideoXTransformer3DModel",
        _scheduler(
            "CogVideoXDDIM", snr_shift_scale=3.0, set_alpha_to_one=True, prediction_type="v_prediction",
            rescale_betas_zero_snr=True, timestep_spacing="trailing",
        ),
        partial(_model, "AutoencoderKLCogVideoX"), **VIDEO, max_sequence_length=4, tiny={"field": "frames"},
    ),
    "wan": lambda: _transformer(
        "Wan", "WanTransformer3DModel",
        _scheduler("UniPCMultistep", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        partial(_model, "AutoencoderKLWan"), **VIDEO, tiny={"field": "frames"},
    ),
    "ltx": lambda: _transformer(
        "LTX", "LTXVideoTransformer3DModel",
        _flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1), _ltx_vae, **MASK,
        height=32, width=64, num_frames=5, tiny={"field": "frames", "size": (5, 32, 64)},
    ),
}
# fmt: on


def _build(make: Callable[[], Tiny]) -> Tiny:
    torch.manual_seed(0)
    tiny = make()
    for part in tiny.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    tiny.pipe.set_progress_bar_config(disable=True)
    return tiny


PIPELINES: dict[str, Callable[[], Tiny]] = {name: partial(_build, make) for name, make in FAMILIES.items()}
