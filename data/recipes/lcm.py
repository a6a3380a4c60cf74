"""Stage 8: the four-step distilled model by latent consistency distillation (Luo et al. 2023).

    python data/recipes/lcm.py --steps 1500

On a grid of 50 timesteps, the distilled model's x0 at one of them must agree with its moving average's x0 one grid step further
down, where the guided base leads in one DDIM step. The guidance is baked in.
"""

import torch
from base import Bank
from common import DEVICE, Checkpoint, arguments, record, stage
from distil import Denoiser, copies, descend, follow, optimizer, publish

GRID = 20  # timesteps between two of the 50


def consistent(model: Denoiser, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The consistency function: x_t itself at t = 0, the predicted x0 elsewhere."""
    scaled = (10.0 * t.view(-1, 1, 1, 1)) ** 2 + 0.25
    return 0.25 / scaled * x_t + (1 - 0.25 / scaled).sqrt() * model.x0(x_t, t, model.noise(x_t, t, text))


def draw(student: Denoiser, text: torch.Tensor) -> torch.Tensor:
    """Four steps as diffusers' LCMScheduler makes them."""
    x_t = torch.randn(len(text), 16, 8, 8, device=DEVICE)
    for now, after in ((999, 759), (759, 499), (499, 259), (259, -1)):
        t, s = (torch.full((len(text),), value, device=DEVICE) for value in (now, after))
        x_t = student.add_noise(consistent(student, x_t, t, text), s, torch.randn_like(x_t))
    return x_t


def main() -> None:
    args = arguments(steps=1500, batch=64, lr=1e-4, guidance=4.0, ema=0.95, huber=0.001)
    data = Bank()
    teacher, student, target = copies(3, frozen=(0, 2))
    moves = optimizer(student.unet.parameters(), args.lr)
    checkpoint = Checkpoint("lcm", student=student.unet, target=target.unet, moves=moves)
    empty = data.empty.expand(args.batch, -1, -1)
    for step in range(checkpoint.resume(), args.steps):
        x0, text = data.batch(args.batch)
        t = GRID * torch.randint(1, 1000 // GRID + 1, (args.batch,), device=DEVICE) - 1
        noise = torch.randn_like(x0)
        start = (t == 999).view(-1, 1, 1, 1)  # sampling starts without any signal
        x_t = torch.where(start, student.signal(t)[1] * noise, student.add_noise(x0, t, noise))
        with torch.no_grad():
            after = (t - GRID).clamp(min=0)
            further = teacher.ddim(x_t, t, after, teacher.guided(x_t, t, text, empty, args.guidance))
            aim = consistent(target, further, after, text)
        error = consistent(student, x_t, t, text) - aim
        value = ((error**2 + args.huber**2).sqrt() - args.huber).mean()
        descend(value, moves, args.lr, step, args.steps)
        follow(target, student, args.ema)
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 50 == 0:
            print(step, f"loss {value.item():.4f}", flush=True)

    record("lcm", steps=args.steps, batch=args.batch, guidance=args.guidance, ema=args.ema)
    publish("emoji-lcm", target.unet, lambda text: draw(target, text), data)


if __name__ == "__main__":
    with stage("lcm"):
        main()
