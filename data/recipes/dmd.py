"""Stage 7: the four-step distilled model, by distribution matching distillation (DMD2, Yin et al. 2024).

    python data/recipes/dmd.py --steps 2500

The distilled model starts as the base. Each iteration rolls it without gradient to one of its four timesteps (backward
simulation), then the fake score learns to denoise what the distilled model makes; every fifth iteration the distilled model moves
along the difference between the fake score and the guided base, and away from what an adversary on the fake score's features
tells from real latents. That push is scaled to a share of the difference, whatever the adversary's own loss is.
"""

import torch
import torch.nn.functional as F
from base import Bank
from common import DEVICE, Checkpoint, arguments, record, stage
from distil import TIMESTEPS, Denoiser, Heads, copies, descend, encode, follow, optimizer, publish


def student_input(student: Denoiser, text: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t and t after `steps` steps of the distilled model's own sampler, without gradient."""
    x_t = torch.randn(len(text), 16, 8, 8, device=DEVICE)
    times = [torch.full((len(text),), t, device=DEVICE) for t in TIMESTEPS]
    with torch.no_grad():
        for step in range(steps):
            x0 = student.x0(x_t, times[step], student.noise(x_t, times[step], text))
            x_t = student.add_noise(x0, times[step + 1], torch.randn_like(x0))
    return x_t, times[steps]


def matching_loss(
    x0: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, teacher: Denoiser, fake: Denoiser, heads: Heads, args
):
    """DMD's loss: its gradient in x0 is the normalised difference of the fake and the guided teacher's x0, and the adversary's."""
    t, z = renoise(teacher, x0.detach())
    with torch.no_grad():
        real = teacher.x0(z, t, teacher.guided(z, t, text, empty, args.guidance))
        made = fake.x0(z, t, fake.noise(z, t, text))
        gradient = (made - real) / (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    leaf = x0.detach().requires_grad_(True)
    t, z = renoise(fake, leaf)
    heads.requires_grad_(False)
    (push,) = torch.autograd.grad(F.softplus(-heads(encode(fake.unet, z, t, text), text)).mean(), leaf)
    heads.requires_grad_(True)
    push *= gradient.square().mean().sqrt() / push.square().mean().sqrt().clamp(min=1e-12)
    return 0.5 * F.mse_loss(x0, (x0 - gradient - args.adversary * push).detach())


def renoise(model: Denoiser, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Random timesteps, neither quite clean nor quite noise, and x0 noised to them."""
    t = torch.randint(20, 981, (len(x0),), device=DEVICE)
    return t, model.add_noise(x0, t, torch.randn_like(x0))


def draw(student: Denoiser, text: torch.Tensor) -> torch.Tensor:
    """Four steps as the distilled model was trained: x0, noised anew to the next level."""
    x_t, t = student_input(student, text, len(TIMESTEPS) - 1)
    return student.x0(x_t, t, student.noise(x_t, t, text))


def main() -> None:
    rates = {"lr": 1e-4, "fake_lr": 2e-4, "head_lr": 4e-4}
    args = arguments(steps=2500, batch=64, guidance=3.0, adversary=0.5, ratio=5, ema=0.98, **rates)
    data = Bank()
    teacher, student, fake, average = copies(4, frozen=(0, 3))
    moves, learns = optimizer(student.unet.parameters(), args.lr), optimizer(fake.unet.parameters(), args.fake_lr)
    widths = teacher.unet.config.block_out_channels
    heads = Heads([*widths, widths[-1]]).to(DEVICE)
    judges = optimizer(heads.parameters(), args.head_lr)
    parts = {"student": student.unet, "fake": fake.unet, "average": average.unet, "heads": heads}
    checkpoint = Checkpoint("dmd", **parts, moves=moves, learns=learns, judges=judges)
    empty = data.empty.expand(args.batch, -1, -1)
    for step in range(checkpoint.resume(), args.steps):
        real, text = data.batch(args.batch)
        x_t, t = student_input(student, text, int(torch.randint(len(TIMESTEPS), ())))
        student_turn = step % args.ratio == args.ratio - 1
        with torch.set_grad_enabled(student_turn):
            x0 = student.x0(x_t, t, student.noise(x_t, t, text))
        if student_turn:
            value = matching_loss(x0, text, empty, teacher, fake, heads, args)
            descend(value, moves, args.lr, step, args.steps)
            follow(average, student, args.ema)
        x0 = x0.detach()
        s, noise = torch.randint(1000, (args.batch,), device=DEVICE), torch.randn_like(x0)
        value = F.mse_loss(fake.noise(fake.add_noise(x0, s, noise), s, text), noise)
        descend(value, learns, args.fake_lr, step, args.steps)
        with torch.no_grad():
            true, false = (encode(fake.unet, z, t, text) for t, z in (renoise(fake, real), renoise(fake, x0)))
        scores = heads(true, text), heads(false, text)
        told = F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean()
        descend(told, judges, args.head_lr, step, args.steps)
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 50 == 0:
            print(step, f"fake loss {value.item():.4f} heads {told.item():.3f}", flush=True)

    record(
        "dmd",
        steps=args.steps,
        student_updates=args.steps // args.ratio,
        guidance=args.guidance,
        adversary=args.adversary,
    )
    publish("emoji-dmd", average.unet, lambda text: draw(average, text), data)


if __name__ == "__main__":
    with stage("dmd"):
        main()
