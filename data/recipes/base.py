"""Stage 5: the base model, a text-to-image latent diffusion model of painted worlds.

    python data/recipes/base.py --steps 20000
    python data/recipes/base.py --steps 6000 --go-on 1    # from the published weights, with a new optimizer

Noise prediction on the shifted schedule of `common.py`. A caption mentions the colour in 30% of the pictures, the size in 30%,
and is dropped one time in ten for guidance. Writes `data/models/emoji-base`, a whole diffusers pipeline.
"""

import copy

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
    betas,
    concepts,
    contact_sheet,
    cosine,
    follow,
    record,
    stage,
)
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer
from world import World, caption, sample_factors

from dtviz.metrics.factors import COLOURS, SIZES

BASE = MODELS / "emoji-base"
EACH = 64  # paintings of each drawing
MENTION, DROP = 0.3, 0.1  # how often a caption says the colour, or the size; how often there is none


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


class Bank:
    """Latents of painted pictures of the chosen concepts with their factors, and the text states of all captions.

    Attributes:
        latents: (picture, 16, 8, 8), `EACH` of every drawing; kept in the work folder.
        facts: what `sample_factors` drew for each, and `label` (index into `concepts()`) and `row` (the drawing).
        text: (caption, 16, 128) text states of every concept with every mention; the last row is the empty prompt's.
    """

    @torch.inference_mode()
    def __init__(self) -> None:
        self.vae = AutoencoderKL.from_pretrained(BASE / "vae", dtype=torch.float32).to(DEVICE).eval()
        path, names = WORK / "bank.pt", concepts()
        if not path.exists():
            torch.save(self.paint(names), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        self.facts = torch.load(path, map_location=DEVICE, weights_only=True)
        self.latents = self.facts.pop("latents").float()
        tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32).to(DEVICE).eval()
        mentions = [(colour, size) for colour in range(-1, len(COLOURS)) for size in range(-1, len(SIZES))]
        self.per_concept = len(mentions)
        captions = [caption(name, *mention) for name in names for mention in mentions] + [""]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(DEVICE)
        self.text = torch.cat([encoder(part)[0] for part in tokens.split(256)]).clone()

    def paint(self, names: list[str]) -> dict[str, torch.Tensor]:
        """The pictures' latents and facts."""
        world, generator, parts = World(), torch.Generator().manual_seed(0), []
        rows = torch.from_numpy(np.isin(world.concept, names).nonzero()[0])
        labels = torch.tensor([names.index(world.concept[row]) for row in rows])
        for some, label in [(rows[i::16], labels[i::16]) for i in range(16)] * EACH:
            factors = sample_factors(len(some), generator=generator)
            latents = self.vae.encode(world.paint(some, factors).to(DEVICE)).latent_dist.mean.cpu()
            parts.append({"latents": latents.half(), "label": label, "row": some} | factors)
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @property
    def empty(self) -> torch.Tensor:
        """(1, 16, 128) text states of the empty prompt."""
        return self.text[-1:]

    def named(self, rows: torch.Tensor) -> torch.Tensor:
        """Text states of concepts alone."""
        return self.text[rows * self.per_concept]

    def batch(self, n: int, *, drop: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents (n, 16, 8, 8) and text states (n, 16, 128) of random pictures."""
        rows = torch.randint(len(self.latents), (n,), device=DEVICE)
        colour, size = (
            torch.where(torch.rand(n, device=DEVICE) < MENTION, self.facts[fact][rows], -1)
            for fact in ("colour", "size")
        )
        index = self.facts["label"][rows] * self.per_concept + (colour + 1) * (len(SIZES) + 1) + size + 1
        index = index.masked_fill(torch.rand(n, device=DEVICE) < drop, len(self.text) - 1)
        return self.latents[rows], self.text[index]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(n, 16, 8, 8) -> images (n, 3, 64, 64) in [-1, 1]."""
        with torch.inference_mode():
            return torch.cat([self.vae.decode(batch).sample for batch in latents.split(64)]).clamp(-1, 1)


def loss(unet: UNet2DConditionModel, x0: torch.Tensor, text: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the predicted noise at uniform timesteps."""
    t = torch.randint(len(alpha), (len(x0),), device=x0.device)
    a, noise = alpha[t].view(-1, 1, 1, 1), torch.randn_like(x0)
    x_t = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return F.mse_loss(unet(x_t, t, text).sample.float(), noise)


def assemble(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """The whole pipeline, in float32."""
    # ancestral: fresh noise at every step mends what a small network gets wrong at the step before
    scheduler = EulerAncestralDiscreteScheduler(trained_betas=betas(), steps_offset=1, timestep_spacing="trailing")
    scheduler.register_to_config(clip_sample=False)  # for DDIM in its place, which by default clips latents
    unet = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
    unet.set_default_attn_processor()
    unet.register_to_config(_name_or_path="")  # not this machine's path
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(BASE / "vae", dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(DEVICE)


def draw(pipe: StableDiffusionPipeline, prompts: list[str], each: int) -> torch.Tensor:
    """`each` images a prompt as the base is meant to be used, (n, 3, 64, 64) in [0, 1]; the same noise at every call."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    settings = {"guidance_scale": 5.0, "num_inference_steps": 20, "num_images_per_prompt": each, "output_type": "pt"}
    images = [torch.as_tensor(pipe(prompt, generator=generator, **settings).images) for prompt in prompts]
    return torch.cat(images).cpu()


def main() -> None:
    args = arguments(steps=20000, batch=64, lr=7e-4, ema=0.999, go_on=0)
    bank, alpha = Bank(), alphas_cumprod().float().to(DEVICE)
    old = UNet2DConditionModel.from_pretrained(BASE / "unet", dtype=torch.float32) if args.go_on else build()
    unet = for_training(old).train()
    average = copy.deepcopy(unet).requires_grad_(False).eval()
    unet.compile()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint, running = Checkpoint("base", unet=unet, average=average, optimizer=optimizer), None
    for step in range(checkpoint.resume(), args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine(step, args.steps)
        value = loss(unet, *bank.batch(args.batch, drop=DROP), alpha)
        value.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, unet, min(args.ema, (step + 1) / (step + 10)))
        running = value.item() if running is None else 0.99 * running + 0.01 * value.item()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 100 == 0:
            print(step, f"loss {running:.4f}", flush=True)
    record("base", steps=args.steps, loss=running, parameters=sum(p.numel() for p in unet.parameters()))
    pipe = assemble(average)
    contact_sheet(2 * draw(pipe, [caption(name) for name in concepts()], 8) - 1, 16, BASE / "samples.jpg")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.half()  # half the bytes in the repository; loaded, they are float32 again
    pipe.save_pretrained(BASE)


if __name__ == "__main__":
    with stage("base"):
        main()
