"""Stage 4: the base model, a text-to-image latent diffusion model over the chosen concepts.

    python data/recipes/base.py --steps 5600

Noise prediction on the shifted schedule of `common.py`, captions dropped one time in ten for guidance.
Writes `data/models/emoji-base`, a whole diffusers pipeline.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    DEVICE,
    MODELS,
    Checkpoint,
    alphas_cumprod,
    arguments,
    as_images,
    betas,
    caption,
    concepts,
    contact_sheet,
    cosine,
    drawings,
    record,
    stage,
)
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer


def build() -> UNet2DConditionModel:
    """The untrained denoiser, 7.2 M parameters."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        layers_per_block=1,
        block_out_channels=(96, 160),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return for_training(unet)


def for_training(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same network in the layout that trains fastest on a CPU: plain attention (the fused one's backward is slow)."""
    unet.set_attn_processor(AttnProcessor())
    return unet.to(DEVICE, memory_format=torch.channels_last)


class Conditioning:
    """Latents and text states of the chosen drawings, computed once.

    Attributes:
        latents: (drawing, 16, 8, 8) of every drawing.
        label: (drawing,) index into `concepts()`.
        text: (concept + 1, 16, 128) text states; the last row is the empty prompt's.
    """

    @torch.inference_mode()
    def __init__(self) -> None:
        data, names = drawings(), concepts()
        self.vae = AutoencoderKL.from_pretrained(MODELS / "emoji-base" / "vae").to(DEVICE).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(MODELS / "emoji-clip")
        self.text_encoder = CLIPTextModel.from_pretrained(MODELS / "emoji-clip").to(DEVICE).eval()
        chosen = np.isin(data["concept"], names)
        images = as_images(data["images"][chosen])
        self.latents = torch.cat([self.vae.encode(b.to(DEVICE)).latent_dist.mean for b in images.split(64)]).clone()
        self.label = torch.tensor([names.index(name) for name in data["concept"][chosen]], device=DEVICE)
        prompts = [caption(name) for name in names] + [""]
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.text = self.text_encoder(tokens.to(DEVICE))[0].clone()

    @property
    def empty(self) -> int:
        """The row of `text` that holds the empty prompt."""
        return len(self.text) - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(n, 16, 8, 8) -> images (n, 3, 64, 64) in [-1, 1]."""
        with torch.inference_mode():
            return torch.cat([self.vae.decode(batch).sample for batch in latents.split(64)]).clamp(-1, 1)


def loss(unet: UNet2DConditionModel, x0: torch.Tensor, text: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the predicted noise at uniform timesteps."""
    t = torch.randint(len(alpha), (len(x0),), device=x0.device)
    a, noise = alpha[t].view(-1, 1, 1, 1), torch.randn_like(x0)
    x_t = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    return F.mse_loss(unet(x_t, t, text).sample.float(), noise)


def publish(unet: UNet2DConditionModel, data: Conditioning) -> StableDiffusionPipeline:
    """Assemble and save the whole pipeline."""
    # ancestral: fresh noise at every step mends what a small network gets wrong at the step before
    scheduler = EulerAncestralDiscreteScheduler(trained_betas=betas(), steps_offset=1, timestep_spacing="trailing")
    unet = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
    unet.set_default_attn_processor()
    pipe = StableDiffusionPipeline(
        vae=data.vae,
        text_encoder=data.text_encoder,
        tokenizer=data.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.unet.half()  # half the bytes in the repository; loaded, it is float32 again
    pipe.save_pretrained(MODELS / "emoji-base")
    pipe.unet.float()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    args = arguments(steps=5600, batch=64, lr=7e-4, ema=0.999)
    data = Conditioning()
    alpha = alphas_cumprod().float().to(DEVICE)
    unet = build().train()
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint("base", every=250, unet=unet, average=average, optimizer=optimizer)
    running = None
    for step in range(checkpoint.resume(), args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine(step, args.steps)
        chosen = torch.randint(len(data.latents), (args.batch,), device=DEVICE)
        label = data.label[chosen].masked_fill(torch.rand(args.batch, device=DEVICE) < 0.1, data.empty)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss(unet, data.latents[chosen], data.text[label], alpha)
        value.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(args.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
        running = value.item() if running is None else 0.98 * running + 0.02 * value.item()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 100 == 0:
            print(step, f"loss {running:.4f}", flush=True)

    pipe = publish(average.eval(), data)
    record("base", steps=args.steps, loss=running, parameters=sum(p.numel() for p in unet.parameters()))
    prompts = [caption(name) for name in concepts()[::6]]
    generator = torch.Generator(DEVICE).manual_seed(0)
    images = [
        pipe(
            prompt,
            num_images_per_prompt=8,
            guidance_scale=5.0,
            num_inference_steps=20,
            generator=generator,
            output_type="pt",
        )
        for prompt in prompts
    ]
    contact_sheet(
        2 * torch.cat([torch.as_tensor(out.images) for out in images]) - 1, 16, checkpoint.path.with_suffix(".png")
    )


if __name__ == "__main__":
    with stage("base"):
        main()
