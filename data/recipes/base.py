"""Stage 5: the base model, a text-to-image latent diffusion model over the chosen concepts.

    python data/recipes/base.py --steps 13000

Noise prediction on the shifted schedule of `common.py`, captions dropped one time in ten for guidance.
Writes `data/models/emoji-base`, a whole diffusers pipeline.
"""

import copy
import json
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    DEVICE,
    MODELS,
    WORK,
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
    follow,
    record,
    stage,
)
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

import dtviz
from dtviz.metrics.diversity import nearest
from dtviz.metrics.embedders import Embedder


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
        self.vae = AutoencoderKL.from_pretrained(MODELS / "emoji-base" / "vae", dtype=torch.float32).to(DEVICE).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(MODELS / "emoji-base" / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(MODELS / "emoji-base" / "text_encoder", dtype=torch.float32)
        self.text_encoder = encoder.to(DEVICE).eval()
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


def assemble(unet: UNet2DConditionModel, data: Conditioning) -> StableDiffusionPipeline:
    """The whole pipeline, in float32."""
    # ancestral: fresh noise at every step mends what a small network gets wrong at the step before
    scheduler = EulerAncestralDiscreteScheduler(trained_betas=betas(), steps_offset=1, timestep_spacing="trailing")
    scheduler.register_to_config(clip_sample=False)  # for DDIM in its place, which by default clips latents
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
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionPipeline, prompts: list[str], each: int) -> torch.Tensor:
    """`each` images a prompt as the base is meant to be used, (n, 3, 64, 64) in [0, 1]; the same noise at every call."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    settings = {"guidance_scale": 5.0, "num_inference_steps": 20, "num_images_per_prompt": each, "output_type": "pt"}
    images = [torch.as_tensor(pipe(prompt, generator=generator, **settings).images) for prompt in prompts]
    return torch.cat(images).cpu()


@cache
def gallery() -> tuple[Embedder, np.ndarray]:
    """What `accuracy` looks with, and the features of all drawings."""
    embed = dtviz.embedder("efficientnet-lite0")
    return embed, embed(dtviz.drawings.load().images)


def accuracy(pipe: StableDiffusionPipeline, each: int = 4) -> float:
    """Share of images, of every fourth concept, whose nearest drawing of all is one of their concept's."""
    (embed, drawn), real = gallery(), dtviz.drawings.load()
    prompts = [caption(name) for name in concepts()[::4]]
    asked = [prompt for prompt in prompts for _ in range(each)]
    found = nearest(embed(draw(pipe, prompts, each)), drawn)
    return sum(real.prompts[row] == prompt for row, prompt in zip(found, asked, strict=True)) / len(asked)


def main() -> None:
    args = arguments(steps=13000, batch=64, lr=7e-4, ema=0.999, check=1500)
    data = Conditioning()
    alpha = alphas_cumprod().float().to(DEVICE)
    unet = build().train()
    average = copy.deepcopy(unet).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint("base", every=250, unet=unet, average=average, optimizer=optimizer)
    curve, running = WORK / "base.curve.jsonl", None
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
        follow(average, unet, min(args.ema, (step + 1) / (step + 10)))
        running = value.item() if running is None else 0.99 * running + 0.01 * value.item()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 100 == 0:
            print(step, f"loss {running:.4f}", flush=True)
        if (step + 1) % args.check == 0 or step + 1 == args.steps:
            seen = {"step": step + 1, "loss": running, "accuracy": accuracy(assemble(average, data))}
            with curve.open("a") as file:
                file.write(json.dumps(seen) + "\n")
            print(seen, flush=True)

    pipe = assemble(average, data)
    record("base", steps=args.steps, loss=running, parameters=sum(p.numel() for p in unet.parameters()))
    sheet = draw(pipe, [caption(name) for name in concepts()[::6]], 8)
    contact_sheet(2 * sheet - 1, 16, checkpoint.path.with_suffix(".png"))
    for part in (pipe.unet, pipe.vae):
        part.half()  # half the bytes in the repository; loaded, they are float32 again
    pipe.save_pretrained(MODELS / "emoji-base")


if __name__ == "__main__":
    with stage("base"):
        main()
