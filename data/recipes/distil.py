"""What the four distilled models' recipes share: the schedule on a denoiser, the base's copies, the adversary, publishing.

Every distilled model starts as the base and is trained on the base's own noise schedule; only the method differs.
"""

import copy
from collections.abc import Callable

import common
import torch
from base import BASE, Bank, for_training
from common import (
    DEVICE,
    MODELS,
    WORK,
    alphas_cumprod,
    concepts,
    contact_sheet,
    cosine,
    eight_bits,
    record,
)
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lora import extract
from torch import nn
from world import caption

TIMESTEPS = (999, 749, 499, 249)  # the four steps of DMD2, Turbo and Lightning
RANK = 24  # of the distillation LoRAs


class Denoiser:
    """A UNet with its noise schedule: predictions in noise and in x0, and the moves between noise levels."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet, self.alpha = unet, alphas_cumprod().float().to(DEVICE)

    def signal(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(alpha) and sqrt(1 - alpha) at timesteps (n,), broadcast over latents; at -1 all is signal."""
        a = torch.where(t >= 0, self.alpha[t.clamp(min=0)], 1.0).view(-1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def noise(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Predicted noise, (n, 16, 8, 8) float32."""
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return self.unet(x_t.contiguous(memory_format=torch.channels_last), t, text).sample.float()

    def guided(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, scale: float):
        """Predicted noise with classifier-free guidance."""
        conditional, unconditional = self.noise(x_t, t, text), self.noise(x_t, t, empty)
        return unconditional + scale * (conditional - unconditional)

    def x0(self, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The clean sample that a noise prediction implies."""
        a, b = self.signal(t)
        return (x_t - b * noise) / a

    def add_noise(self, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_t of a clean sample."""
        a, b = self.signal(t)
        return a * x0 + b * noise

    def ddim(self, x_t: torch.Tensor, t: torch.Tensor, after: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The deterministic step from `t` to `after`."""
        return self.add_noise(self.x0(x_t, t, noise), after, noise)


def copies(number: int, *, frozen: tuple[int, ...] = ()) -> list[Denoiser]:
    """As many base denoisers in float32; the numbered ones without gradient."""
    base = UNet2DConditionModel.from_pretrained(BASE / "unet", dtype=torch.float32)
    made = [Denoiser(for_training(copy.deepcopy(base)).train()) for _ in range(number)]
    for i in frozen:
        made[i].unet.eval().requires_grad_(False)
    return made


def optimizer(parameters, lr: float) -> torch.optim.AdamW:
    """AdamW as all distilled models use it."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)


def descend(value: torch.Tensor, moves: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """One update with clipped gradients at this step's learning rate."""
    value.backward()
    for group in moves.param_groups:
        group["lr"] = rate * cosine(step, steps, warmup=20)
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    moves.step()
    moves.zero_grad()


def follow(average: Denoiser, student: Denoiser, decay: float) -> None:
    """Move the average of the distilled model's weights a little towards them."""
    common.follow(average.unet, student.unet, decay)


def encode(unet: UNet2DConditionModel, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
    """The features of the downward half and the middle of a UNet: what the adversaries look at."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        time = unet.time_embedding(unet.time_proj(t).to(x_t.dtype))
        hidden, features = unet.conv_in(x_t.contiguous(memory_format=torch.channels_last)), []
        for block in unet.down_blocks:
            hidden, _ = block(hidden, time, encoder_hidden_states=text)
            features.append(hidden)
        return [*features, unet.mid_block(hidden, time, encoder_hidden_states=text)]


class Heads(nn.Module):
    """A real-or-made score for each place of each feature map, with a projection on the prompt (Sauer et al. 2023)."""

    def __init__(self, channels: list[int], text: int = 128, width: int = 64) -> None:
        super().__init__()
        self.look = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()) for c in channels
        )
        self.score = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in channels)
        self.prompt = nn.ModuleList(nn.Linear(text, width) for _ in channels)

    def forward(self, features: list[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
        """(n, places) from the feature maps and the text states (n, token, 128)."""
        scores = []
        for feature, look, score, prompt in zip(features, self.look, self.score, self.prompt, strict=True):
            seen = look(feature.float())
            agreed = (seen * prompt(text.mean(1))[:, :, None, None]).sum(1, keepdim=True) / seen.shape[1] ** 0.5
            scores.append((score(seen) + agreed).flatten(1))
        return torch.cat(scores, dim=1)


def publish(name: str, unet: UNet2DConditionModel, draw: Callable[[torch.Tensor], torch.Tensor], data: Bank) -> None:
    """Save a distilled model, whole and as a LoRA on the base, and a contact sheet of every fourth concept, eight samples each."""
    unet = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
    base = UNet2DConditionModel.from_pretrained(BASE / "unet", dtype=torch.float32).to(DEVICE)
    state, kept = extract(base, unet, RANK)  # from the weights as trained: eight bits would bury the change in noise
    StableDiffusionPipeline.save_lora_weights(MODELS / name / "lora", unet_lora_layers=state)
    eight_bits(MODELS / name / "lora" / "pytorch_lora_weights.safetensors")
    record(f"{name}-lora", rank=RANK, kept=kept)
    unet.set_default_attn_processor()
    unet.register_to_config(_name_or_path="emoji-base")  # not this machine's path
    folder = MODELS / name / "unet"
    unet.half().save_pretrained(folder)
    eight_bits(folder / "diffusion_pytorch_model.safetensors")

    rows = torch.arange(0, len(concepts()), 4, device=DEVICE).repeat_interleave(8)
    torch.manual_seed(0)
    with torch.no_grad():
        contact_sheet(data.decode(draw(data.named(rows))), 24, WORK / f"{name}.png")
    print("contact sheet of", ", ".join(caption(concepts()[row]) for row in rows[::8]))
