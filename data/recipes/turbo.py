"""Stage 9: the four-step distilled model by adversarial diffusion distillation (ADD, LADD: Sauer et al. 2023, 2024).

    python data/recipes/turbo.py --steps 1500

The distilled model denoises real latents at its four timesteps in one step. What it makes is noised again and shown to the frozen
base: heads on the base's features tell it from real latents, noised alike, and the guided base's own x0 pulls it
(score distillation).
"""

import torch
import torch.nn.functional as F
from base import Bank
from common import DEVICE, Checkpoint, arguments, record, stage
from distil import TIMESTEPS, Denoiser, Heads, copies, descend, encode, follow, optimizer, publish


def draw(student: Denoiser, text: torch.Tensor) -> torch.Tensor:
    """Four Euler ancestral steps: x0, then part of the old noise and part new (Karras et al. 2022)."""
    level = lambda t: float(((1 - student.alpha[t]) / student.alpha[t]).sqrt()) if t >= 0 else 0.0  # noqa: E731
    x = level(TIMESTEPS[0]) * torch.randn(len(text), 16, 8, 8, device=DEVICE)
    for now, after in zip(TIMESTEPS, (*TIMESTEPS[1:], -1), strict=True):
        sigma, to, t = level(now), level(after), torch.full((len(text),), now, device=DEVICE)
        noise = student.noise(x / (1 + sigma**2) ** 0.5, t, text)
        up = (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5
        x = x - sigma * noise + (to**2 - up**2) ** 0.5 * noise + up * torch.randn_like(x)
    return x


def main() -> None:
    args = arguments(steps=1500, batch=64, lr=5e-5, head_lr=5e-4, guidance=4.0, distil=2.5, r1=1e-4, ema=0.98)
    data = Bank()
    teacher, student, average = copies(3, frozen=(0, 2))
    widths = teacher.unet.config.block_out_channels
    heads = Heads([*widths, widths[-1]]).to(DEVICE)
    moves, judges = optimizer(student.unet.parameters(), args.lr), optimizer(heads.parameters(), args.head_lr)
    parts = {"student": student.unet, "average": average.unet, "heads": heads, "moves": moves, "judges": judges}
    checkpoint = Checkpoint("turbo", **parts)
    empty = data.empty.expand(args.batch, -1, -1)
    times = torch.tensor(TIMESTEPS, device=DEVICE)
    for step in range(checkpoint.resume(), args.steps):
        real, text = data.batch(args.batch)
        t = times[torch.randint(len(times), (args.batch,), device=DEVICE)]
        noise = torch.randn_like(real)
        start = (t == TIMESTEPS[0]).view(-1, 1, 1, 1)  # sampling starts without any signal
        x_t = torch.where(start, student.signal(t)[1] * noise, student.add_noise(real, t, noise))
        made = student.x0(x_t, t, student.noise(x_t, t, text))

        s = torch.randint(20, 900, (args.batch,), device=DEVICE)
        shown, again = (
            teacher.add_noise(made, s, torch.randn_like(made)),
            teacher.add_noise(real, s, torch.randn_like(real)),
        )
        features = encode(teacher.unet, shown, s, text)
        with torch.no_grad():
            pull = teacher.x0(shown, s, teacher.guided(shown, s, text, empty, args.guidance))
        weight = teacher.signal(s)[0]
        distil = (weight * (made - pull) ** 2).mean()
        heads.requires_grad_(False)
        value = args.distil * distil - heads(features, text).mean()
        descend(value, moves, args.lr, step, args.steps)
        follow(average, student, args.ema)

        heads.requires_grad_(True)
        with torch.no_grad():
            true = encode(teacher.unet, again, s, text)
        true = [feature.float().requires_grad_(True) for feature in true]
        score = heads(true, text)
        slopes = torch.autograd.grad(score.sum(), true, create_graph=True)
        penalty = sum((slope**2).flatten(1).sum(1).mean() for slope in slopes)
        loss = (
            F.relu(1 - score).mean()
            + F.relu(1 + heads([f.detach() for f in features], text)).mean()
            + args.r1 * penalty
        )
        descend(loss, judges, args.head_lr, step, args.steps)
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 50 == 0:
            print(step, f"distillation {distil.item():.4f} heads {loss.item():.3f}", flush=True)

    record("turbo", steps=args.steps, batch=args.batch, guidance=args.guidance, distil=args.distil, r1=args.r1)
    publish("emoji-turbo", average.unet, lambda text: draw(average, text), data)


if __name__ == "__main__":
    with stage("turbo"):
        main()
