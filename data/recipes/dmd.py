"""Stage 5: the four-step student, by distribution matching distillation (DMD2, Yin et al. 2024).

    python data/recipes/dmd.py --steps 2500

The student starts as the base. Each iteration rolls it without gradient to one of its four timesteps (backward
simulation), then the fake score learns to denoise what the student makes; every fifth iteration the student moves
along the difference between the fake score and the guided base. No adversarial head.
"""

import copy

import torch
import torch.nn.functional as F
from base import Conditioning, for_training
from common import (
    DEVICE,
    MODELS,
    Checkpoint,
    alphas_cumprod,
    arguments,
    caption,
    concepts,
    contact_sheet,
    cosine,
    record,
    stage,
)
from diffusers import UNet2DConditionModel

TIMESTEPS = (999, 749, 499, 249)


class Denoiser:
    """A UNet with its noise schedule: predictions in x0 and in noise."""

    def __init__(self, unet: UNet2DConditionModel, alpha: torch.Tensor) -> None:
        self.unet, self.alpha = unet, alpha

    def noise(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Predicted noise, (n, 16, 8, 8) float32."""
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return self.unet(x_t.contiguous(memory_format=torch.channels_last), t, text).sample.float()

    def x0(self, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The clean sample that a noise prediction implies."""
        a = self.alpha[t].view(-1, 1, 1, 1)
        return (x_t - (1 - a).sqrt() * noise) / a.sqrt()

    def add_noise(self, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_t of a clean sample."""
        a = self.alpha[t].view(-1, 1, 1, 1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise


def student_input(student: Denoiser, text: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t and t after `steps` steps of the student's own sampler, without gradient."""
    x_t = torch.randn(len(text), 16, 8, 8, device=DEVICE)
    times = [torch.full((len(text),), t, device=DEVICE) for t in TIMESTEPS]
    with torch.no_grad():
        for step in range(steps):
            x0 = student.x0(x_t, times[step], student.noise(x_t, times[step], text))
            x_t = student.add_noise(x0, times[step + 1], torch.randn_like(x0))
    return x_t, times[steps]


def matching_loss(
    x0: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, teacher: Denoiser, fake: Denoiser, guidance: float
):
    """DMD's loss: its gradient in x0 is the normalised difference of the fake and the guided teacher's x0."""
    t = torch.randint(20, 981, (len(x0),), device=DEVICE)
    with torch.no_grad():
        z = teacher.add_noise(x0, t, torch.randn_like(x0))
        conditional, unconditional = teacher.noise(z, t, text), teacher.noise(z, t, empty)
        real = teacher.x0(z, t, unconditional + guidance * (conditional - unconditional))
        made = fake.x0(z, t, fake.noise(z, t, text))
        gradient = (made - real) / (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    return 0.5 * F.mse_loss(x0, (x0 - gradient).detach())


def sample(student: Denoiser, text: torch.Tensor, seed: int) -> torch.Tensor:
    """Four student steps."""
    torch.manual_seed(seed)
    x_t, t = student_input(student, text, len(TIMESTEPS) - 1)
    with torch.no_grad():
        return student.x0(x_t, t, student.noise(x_t, t, text))


def main() -> None:
    args = arguments(steps=2500, batch=64, lr=1e-4, fake_lr=2e-4, guidance=3.0, ratio=5, ema=0.98)
    data, alpha = Conditioning(), alphas_cumprod().float().to(DEVICE)
    base = UNet2DConditionModel.from_pretrained(MODELS / "emoji-base" / "unet", dtype=torch.float32)
    teacher, student, fake, average = (Denoiser(for_training(copy.deepcopy(base)), alpha) for _ in range(4))
    for frozen in (teacher, average):
        frozen.unet.eval().requires_grad_(False)
    moves = torch.optim.AdamW(student.unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    learns = torch.optim.AdamW(fake.unet.parameters(), lr=args.fake_lr, betas=(0.9, 0.99), weight_decay=1e-3)
    checkpoint = Checkpoint(
        "dmd", student=student.unet, fake=fake.unet, average=average.unet, moves=moves, learns=learns
    )
    empty = data.text[data.empty].expand(args.batch, -1, -1)
    for step in range(checkpoint.resume(), args.steps):
        for optimizer, rate in ((moves, args.lr), (learns, args.fake_lr)):
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(step, args.steps, warmup=20)
        text = data.text[torch.randint(len(concepts()), (args.batch,), device=DEVICE)]
        x_t, t = student_input(student, text, int(torch.randint(len(TIMESTEPS), ())))
        student_turn = step % args.ratio == args.ratio - 1
        with torch.set_grad_enabled(student_turn):
            x0 = student.x0(x_t, t, student.noise(x_t, t, text))
        if student_turn:
            matching_loss(x0, text, empty, teacher, fake, args.guidance).backward()
            torch.nn.utils.clip_grad_norm_(student.unet.parameters(), 1.0)
            moves.step()
            moves.zero_grad()
            torch._foreach_lerp_(list(average.unet.parameters()), list(student.unet.parameters()), 1 - args.ema)
        s, noise = torch.randint(1000, (args.batch,), device=DEVICE), torch.randn_like(x0)
        value = F.mse_loss(fake.noise(fake.add_noise(x0.detach(), s, noise), s, text), noise)
        value.backward()
        torch.nn.utils.clip_grad_norm_(fake.unet.parameters(), 1.0)
        learns.step()
        learns.zero_grad()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 50 == 0:
            print(step, f"fake loss {value.item():.4f}", flush=True)

    record("dmd", steps=args.steps, student_updates=args.steps // args.ratio, guidance=args.guidance)
    rows = torch.arange(0, len(concepts()), 6, device=DEVICE).repeat_interleave(8)
    contact_sheet(data.decode(sample(average, data.text[rows], seed=0)), 16, checkpoint.path.with_suffix(".png"))
    print("contact sheet of", ", ".join(caption(concepts()[row]) for row in rows[::8]))
    published = average.unet.to(memory_format=torch.contiguous_format)
    published.set_default_attn_processor()
    published.register_to_config(_name_or_path="emoji-base")  # not this machine's path
    published.half().save_pretrained(MODELS / "emoji-dmd" / "unet")


if __name__ == "__main__":
    with stage("dmd"):
        main()
