"""Tiny random diffusers pipelines of many families, built offline from config, each with one short call.

tiny = PIPELINES["flux"]()
latents = getattr(tiny.pipe(**tiny.call, output_type=tiny.latent), tiny.field)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HeunDiscreteScheduler,
    KandinskyV22Pipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from .conftest import tiny_unet

WIDTH = 16  # of the prompt embeddings, plain and pooled
SD_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
LATENTS = {"latents_mean": [-0.7571, -0.7089, -0.9113, 0.1075], "latents_std": [2.8184, 1.4541, 2.3275, 2.6558]}
PLAYGROUND = {
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}


@dataclass(frozen=True)
class Tiny:
    """A pipeline and one short call of it."""

    pipe: DiffusionPipeline
    call: dict[str, Any]  # without generator, output_type and num_images_per_prompt
    steps: int  # of the sampler; Heun's and PNDM's call scheduler.step 2 * steps - 1 and steps + 1 times
    latent: str | None = "latent"  # output_type of the final latents; None: the pipeline cannot return them
    images: str | None = "pt"  # output_type of images in [0, 1] as arrays or tensors; None: the pipeline makes none
    field: str = "images"  # of the output
    size: tuple[int, int] | None = None  # (height, width) in pixels, where the latents are packed


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


def _image() -> torch.Tensor:
    return torch.rand(1, 3, 16, 16)


def _stir(module: torch.nn.Module) -> torch.nn.Module:
    """Random numbers where a fresh module has zeros, so that no branch of it is dead."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return module


def _unet(**config) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config(tiny_unet(0).config, **config)


def _sdxl_unet(time_ids: int = 6) -> UNet2DConditionModel:
    return _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * time_ids + WIDTH,
    )


def _controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    return _stir(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)))


def _vae(blocks: int = 2, **config) -> AutoencoderKL:
    """A VAE that makes 2 ** (blocks - 1) pixels of a latent one."""
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        **config,
    )


def _sdxl_vae(**config) -> AutoencoderKL:
    """Not upcast: SDXL's own is, and diffusers logs a line whenever it is."""
    return _vae(**{"scaling_factor": 0.13025, "force_upcast": False, **config})


def _sd_parts(unet: UNet2DConditionModel, scheduler) -> dict[str, Any]:
    return {
        "vae": _vae(),
        "unet": unet,
        "scheduler": scheduler,
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        "requires_safety_checker": False,
    }


def _sdxl_parts(unet: UNet2DConditionModel, vae: AutoencoderKL) -> dict[str, Any]:
    return {
        "vae": vae,
        "unet": unet,
        "scheduler": EulerDiscreteScheduler(**SD_SCHEDULE, timestep_spacing="leading"),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        "add_watermarker": False,
    }


def _sd(scheduler=None, *, guidance: float = 1.0) -> Tiny:
    scheduler = scheduler or DDIMScheduler(**SD_SCHEDULE, clip_sample=False, set_alpha_to_one=False)
    call = _prompt() | {"num_inference_steps": 4, "guidance_scale": guidance}
    return Tiny(StableDiffusionPipeline(**_sd_parts(_unet(), scheduler)), call, 4)


def _heun() -> Tiny:
    return _sd(HeunDiscreteScheduler(**SD_SCHEDULE))


def _pndm() -> Tiny:
    return _sd(PNDMScheduler(**SD_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False))


def _lcm() -> Tiny:
    parts = _sd_parts(_unet(time_cond_proj_dim=8), LCMScheduler(**SD_SCHEDULE))
    call = _prompt(guided=False) | {"num_inference_steps": 4, "guidance_scale": 8.5}
    return Tiny(LatentConsistencyModelPipeline(**parts), call, 4)


def _sd_controlnet() -> Tiny:
    unet = _unet()
    pipe = StableDiffusionControlNetPipeline(
        **_sd_parts(unet, UniPCMultistepScheduler(**SD_SCHEDULE)), controlnet=_controlnet(unet)
    )
    return Tiny(pipe, _prompt() | {"image": _image(), "num_inference_steps": 4, "guidance_scale": 3.0}, 4)


def _sdxl_call(steps: int, **options) -> dict[str, Any]:
    return _prompt(pooled="pooled_prompt_embeds") | {"num_inference_steps": steps, "guidance_scale": 3.0, **options}


def _sdxl(steps: int = 4, **options) -> Tiny:
    pipe = StableDiffusionXLPipeline(**_sdxl_parts(_sdxl_unet(), _sdxl_vae()))
    return Tiny(pipe, _sdxl_call(steps, **options), 4)


def _sdxl_refiner() -> Tiny:
    pipe = StableDiffusionXLImg2ImgPipeline(
        **_sdxl_parts(_sdxl_unet(time_ids=5), _sdxl_vae()), requires_aesthetics_score=True
    )
    return Tiny(pipe, _sdxl_call(8, image=torch.randn(1, 4, 8, 8), denoising_start=0.5), 4)


def _sdxl_img2img() -> Tiny:
    """With the mean and the deviation of the latents in the VAE's config, as Playground v2.5 has them."""
    pipe = StableDiffusionXLImg2ImgPipeline(**_sdxl_parts(_sdxl_unet(), _sdxl_vae(**PLAYGROUND)))
    return Tiny(pipe, _sdxl_call(5, image=_image(), strength=0.6), 3)


def _sdxl_inpaint() -> Tiny:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12] = 1
    pipe = StableDiffusionXLInpaintPipeline(**_sdxl_parts(_sdxl_unet(), _sdxl_vae()))
    call = _sdxl_call(4, image=_image(), mask_image=mask, height=16, width=16, strength=1.0)
    return Tiny(pipe, call, 4)


def _sdxl_controlnet() -> Tiny:
    unet = _sdxl_unet()
    pipe = StableDiffusionXLControlNetPipeline(**_sdxl_parts(unet, _sdxl_vae()), controlnet=_controlnet(unet))
    return Tiny(pipe, _sdxl_call(4, image=_image()), 4)


def _sd3() -> Tiny:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        **dict.fromkeys(names),
    )
    call = _prompt(pooled="pooled_prompt_embeds") | {"num_inference_steps": 4, "guidance_scale": 3.0}
    return Tiny(pipe, call, 4)


def _flux() -> Tiny:
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )
    call = _prompt(guided=False, pooled="pooled_prompt_embeds")
    call |= {"height": 16, "width": 24, "num_inference_steps": 4, "guidance_scale": 3.5}
    return Tiny(pipe, call, 4, size=(16, 24))


def _qwenimage() -> Tiny:
    pipe = QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            **LATENTS,
        ),
        text_encoder=None,
        tokenizer=None,
    )
    call = _prompt(mask="prompt_embeds_mask")
    call |= {"height": 16, "width": 24, "num_inference_steps": 4, "true_cfg_scale": 3.0}
    return Tiny(pipe, call, 4, size=(16, 24))


def _pixart() -> Tiny:
    pipe = PixArtSigmaPipeline(
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        vae=_vae(scaling_factor=0.13025),
        text_encoder=None,
        tokenizer=None,
    )
    call = _prompt(mask="prompt_attention_mask")
    call |= {
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "use_resolution_binning": False,
        "height": 16,
        "width": 16,
    }
    # the pipeline takes a negative prompt of "" for granted, and none beside negative embeddings
    return Tiny(pipe, call | {"negative_prompt": None}, 4)


def _sana_parts(scheduler, **config) -> dict[str, Any]:
    return {
        "transformer": SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=8,
            **config,
        ),
        "scheduler": scheduler,
        "vae": AutoencoderDC(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            scaling_factor=0.41407,
        ),
        "text_encoder": None,
        "tokenizer": None,
    }


def _sana_call(*, guided: bool, **options) -> dict[str, Any]:
    call = _prompt(guided=guided, mask="prompt_attention_mask")
    return call | {"height": 32, "width": 32, "use_resolution_binning": False, **options}


def _sana() -> Tiny:
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    call = _sana_call(guided=True, num_inference_steps=4, guidance_scale=3.0, negative_prompt=None)
    return Tiny(SanaPipeline(**_sana_parts(scheduler)), call, 4)


def _sana_sprint() -> Tiny:
    parts = _sana_parts(SCMScheduler(), guidance_embeds=True, qk_norm="rms_norm_across_heads")
    call = _sana_call(guided=False, num_inference_steps=3, intermediate_timesteps=None)
    return Tiny(SanaSprintPipeline(**parts), call, 3)


def _auraflow() -> Tiny:
    pipe = AuraFlowPipeline(
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=_vae(scaling_factor=0.13025),
        text_encoder=None,
        tokenizer=None,
    )
    call = _prompt(mask="prompt_attention_mask")
    return Tiny(pipe, call | {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 3.0}, 4)


def _lumina2() -> Tiny:
    pipe = Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 32, 32),
            cap_feat_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=_vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=None,
        tokenizer=None,
    )
    call = _prompt(mask="prompt_attention_mask")
    return Tiny(pipe, call | {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0}, 4)


def _kandinsky22() -> Tiny:
    """Its "pt" images stay in [-1, 1] and unclamped; "np" is an image."""
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        norm_type="spatial",
    )
    movq.decoder.conv_out.weight.data *= 0.2  # few pixels outside of [0, 1]
    pipe = KandinskyV22Pipeline(
        unet=_unet(
            out_channels=8,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="image",
            encoder_hid_dim=WIDTH,
            encoder_hid_dim_type="image_proj",
            class_embed_type=None,
        ),
        scheduler=DDPMScheduler(
            beta_schedule="linear",
            beta_start=0.00085,
            beta_end=0.012,
            variance_type="learned_range",
            clip_sample=False,
        ),
        movq=movq,
    )
    embeds = {"image_embeds": torch.randn(1, WIDTH), "negative_image_embeds": torch.randn(1, WIDTH)}
    call = embeds | {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 3.0}
    return Tiny(pipe, call, 4, images="np")


def _cascade_unet(**config) -> StableCascadeUNet:
    return _stir(
        StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            conditioning_dim=16,
            block_out_channels=(16, 16),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_text_pooled_in_channels=WIDTH,
            **config,
        )
    )


def _cascade_embeds(*, guided: bool) -> dict[str, torch.Tensor]:
    call = _prompt(guided=guided)
    return call | {f"{name}_pooled": torch.randn(1, 1, WIDTH) for name in call}


def _cascade_prior() -> Tiny:
    """It makes image embeddings of 4 channels, the latents; its text encoder only says which dtype they have."""
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipe = StableCascadePriorPipeline(
        tokenizer=None,
        text_encoder=CLIPTextModelWithProjection(text),
        prior=_cascade_unet(clip_text_in_channels=WIDTH, clip_image_in_channels=8, switch_level=(False,)),
        scheduler=DDPMWuerstchenScheduler(),
    )
    call = _cascade_embeds(guided=True)
    call |= {"height": 256, "width": 256, "num_inference_steps": 4, "guidance_scale": 3.0}
    return Tiny(pipe, call, 4, latent="pt", images=None, field="image_embeddings")


def _cascade() -> Tiny:
    vqgan = _stir(PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=16))
    vqgan.out_block[0].weight.data *= 0.01  # few pixels outside of [0, 1], to which it clamps them as they are
    vqgan.out_block[0].bias.data += 0.5
    pipe = StableCascadeDecoderPipeline(
        decoder=_cascade_unet(patch_size=2, effnet_in_channels=4, timestep_conditioning_type=("sca",)),
        tokenizer=None,
        text_encoder=None,
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=vqgan,
    )
    call = _cascade_embeds(guided=True)
    call |= {"image_embeddings": torch.randn(1, 4, 1, 1), "num_inference_steps": 4, "guidance_scale": 1.5}
    return Tiny(pipe, call, 4)


def _ddim_pixels() -> Tiny:
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    return Tiny(DDIMPipeline(unet, DDIMScheduler()), {"num_inference_steps": 4}, 4, latent=None)


def _cogvideox() -> Tiny:
    """Its latents have the frames before the channels."""
    pipe = CogVideoXPipeline(
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=WIDTH,
            num_layers=1,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            temporal_compression_ratio=2,
            max_text_seq_length=4,
        ),
        scheduler=CogVideoXDDIMScheduler(
            snr_shift_scale=3.0,
            set_alpha_to_one=True,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
        vae=AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            temporal_compression_ratio=2,
            sample_height=16,
            sample_width=16,
            scaling_factor=1.15258426,
        ),
        text_encoder=None,
        tokenizer=None,
    )
    call = _prompt() | {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 4}
    return Tiny(pipe, call | {"num_inference_steps": 4, "guidance_scale": 3.0}, 4, field="frames")


def _wan() -> Tiny:
    pipe = WanPipeline(
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=32,
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            **LATENTS,
            scale_factor_temporal=2,
            scale_factor_spatial=2,
        ),
        text_encoder=None,
        tokenizer=None,
    )
    call = _prompt() | {"height": 16, "width": 16, "num_frames": 5}
    return Tiny(pipe, call | {"num_inference_steps": 4, "guidance_scale": 3.0}, 4, field="frames")


def _ltx() -> Tiny:
    """Its VAE keeps the mean and the deviation of the latents in buffers, not in its config."""
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        scaling_factor=0.5,
    )
    for name, values in LATENTS.items():
        getattr(vae, name).copy_(torch.tensor(values))
    pipe = LTXPipeline(
        transformer=LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
        ),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
    )
    call = _prompt(mask="prompt_attention_mask") | {"height": 32, "width": 64, "num_frames": 5}
    call |= {"num_inference_steps": 4, "guidance_scale": 3.0}
    return Tiny(pipe, call, 4, field="frames", size=(32, 64))


def _build(make: Callable[[], Tiny]) -> Tiny:
    torch.manual_seed(0)
    tiny = make()
    for part in tiny.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    tiny.pipe.set_progress_bar_config(disable=True)
    return tiny


PIPELINES: dict[str, Callable[[], Tiny]] = {
    name: partial(_build, make)
    for name, make in {
        "sd": _sd,
        "sd-guided": partial(_sd, guidance=3.0),
        "heun": _heun,
        "pndm": _pndm,
        "lcm": _lcm,
        "sd-controlnet": _sd_controlnet,
        "sdxl": _sdxl,
        "sdxl-base-to-refiner": partial(_sdxl, 8, denoising_end=0.5),
        "sdxl-refiner": _sdxl_refiner,
        "sdxl-img2img": _sdxl_img2img,
        "sdxl-inpaint": _sdxl_inpaint,
        "sdxl-controlnet": _sdxl_controlnet,
        "sd3": _sd3,
        "flux": _flux,
        "qwenimage": _qwenimage,
        "pixart": _pixart,
        "sana": _sana,
        "sana-sprint": _sana_sprint,
        "auraflow": _auraflow,
        "lumina2": _lumina2,
        "kandinsky22": _kandinsky22,
        "cascade-prior": _cascade_prior,
        "cascade": _cascade,
        "ddim-pixels": _ddim_pixels,
        "cogvideox": _cogvideox,
        "wan": _wan,
        "ltx": _ltx,
    }.items()
}
