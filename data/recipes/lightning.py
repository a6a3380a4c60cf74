"""Stage 10: the four-step distilled model by progressive adversarial distillation (SDXL-Lightning, Lin et al. 2024).

    python data/recipes/lightning.py --first 600 --second 800

First the distilled model learns to make four guided steps of the base in one (32 steps to 8), by squared error. Then a copy of it
learns to make two of those in one (8 to 4), against an adversary that sees where a step began and where it ended, on the
features of its own copy of the base. The distilled model stays an ODE solver: its sample keeps the noise that it began with.
"""

import copy
import itertools

import torch
import torch.nn.functional as F
from base import Bank, for_training
from common import DEVICE, Checkpoint, arguments, record, stage
from distil import Denoiser, Heads, copies, descend, encode, follow, optimizer, publish


def trailing(steps: int) -> list[int]:
    """The trailing timesteps of diffusers, and -1 for the end."""
    return [round(1000 - i * 1000 / steps) - 1 for i in range(steps)] + [-1]


def draw(student: Denoiser, text: torch.Tensor) -> torch.Tensor:
    """Four Euler steps, which on this schedule are DDIM's."""
    x = student.signal(torch.tensor([999], device=DEVICE))[1] * torch.randn(len(text), 16, 8, 8, device=DEVICE)
    grid = trailing(4)
    for now, after in itertools.pairwise(grid):
        t, s = (torch.full((len(text),), value, device=DEVICE) for value in (now, after))
        x = student.ddim(x, t, s, student.noise(x, t, text))
    return x


def beginnings(model: Denoiser, data: Bank, batch: int, steps: int):
    """Noised latents at the start of one of `steps` steps: x_t, the step's number, the text states."""
    real, text = data.batch(batch)
    number = torch.randint(steps, (batch,), device=DEVICE)
    t = torch.tensor(trailing(steps), device=DEVICE)[number]
    noise = torch.randn_like(real)
    first = (number == 0).view(-1, 1, 1, 1)  # sampling starts without any signal
    x_t = torch.where(first, model.signal(t)[1] * noise, model.add_noise(real, t, noise))
    return x_t, number, text


def ahead(model: Denoiser, x: torch.Tensor, number: torch.Tensor, text, *, each: int, of: int, empty=None, scale=0.0):
    """`each` of the model's `of` steps, from the beginning of the number-th group of them."""
    grid = torch.tensor(trailing(of), device=DEVICE)
    with torch.no_grad():
        for i in range(each):
            t, after = grid[number * each + i], grid[number * each + i + 1]
            noise = model.noise(x, t, text) if empty is None else model.guided(x, t, text, empty, scale)
            x = model.ddim(x, t, after, noise)
    return x


def one(model: Denoiser, x: torch.Tensor, number: torch.Tensor, text, *, of: int) -> torch.Tensor:
    """The distilled model's own step."""
    grid = torch.tensor(trailing(of), device=DEVICE)
    return model.ddim(x, grid[number], grid[number + 1], model.noise(x, grid[number], text))


def first(data: Bank, args) -> Denoiser:
    """32 guided steps to 8, by squared error."""
    teacher, student, average = copies(3, frozen=(0, 2))
    moves = optimizer(student.unet.parameters(), args.lr)
    checkpoint = Checkpoint("lightning8", student=student.unet, average=average.unet, moves=moves)
    empty = data.empty.expand(args.batch, -1, -1)
    for step in range(checkpoint.resume(), args.first):
        x, number, text = beginnings(student, data, args.batch, 8)
        aim = ahead(teacher, x, number, text, each=4, of=32, empty=empty, scale=args.guidance)
        value = F.mse_loss(one(student, x, number, text, of=8), aim)
        descend(value, moves, args.lr, step, args.first)
        follow(average, student, args.ema)
        checkpoint.save(step + 1, last=step + 1 == args.first)
        if step % 50 == 0:
            print("8 steps", step, f"loss {value.item():.4f}", flush=True)
    return average


def main() -> None:
    args = arguments(first=600, second=800, batch=48, lr=1e-4, head_lr=1e-4, guidance=4.0, ema=0.98, adversary=0.02)
    data = Bank()
    teacher = first(data, args)
    student, average = (Denoiser(for_training(copy.deepcopy(teacher.unet)).requires_grad_(True)) for _ in range(2))
    average.unet.requires_grad_(False)
    (watcher,) = copies(1)
    widths = teacher.unet.config.block_out_channels
    heads = Heads([2 * width for width in (*widths, widths[-1])]).to(DEVICE)
    moves = optimizer(student.unet.parameters(), args.lr)
    judges = optimizer([*watcher.unet.parameters(), *heads.parameters()], args.head_lr)
    parts = {"student": student.unet, "average": average.unet, "watcher": watcher.unet, "heads": heads}
    checkpoint = Checkpoint("lightning", **parts, moves=moves, judges=judges)
    grid = torch.tensor(trailing(4), device=DEVICE)

    def judge(begin: torch.Tensor, end: torch.Tensor, number: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Both ends of a step side by side: the adversary asks whether this end belongs to this beginning."""
        ends = grid[number + 1].clamp(min=0)
        pairs = zip(encode(watcher.unet, begin, grid[number], text), encode(watcher.unet, end, ends, text), strict=True)
        return heads([torch.cat(pair, dim=1) for pair in pairs], text)

    for step in range(checkpoint.resume(), args.second):
        x, number, text = beginnings(student, data, args.batch, 4)
        aim = ahead(teacher, x, number, text, each=2, of=8)
        made = one(student, x, number, text, of=4)
        for module in (watcher.unet, heads):
            module.requires_grad_(False)
        fooled = F.softplus(-judge(x, made, number, text)).mean()
        error = F.mse_loss(made, aim)
        descend(error + args.adversary * fooled, moves, args.lr, step, args.second)
        follow(average, student, args.ema)
        for module in (watcher.unet, heads):
            module.requires_grad_(True)
        scores = judge(x, aim, number, text), judge(x, made.detach(), number, text)
        loss = F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean()
        descend(loss, judges, args.head_lr, step, args.second)
        checkpoint.save(step + 1, last=step + 1 == args.second)
        if step % 50 == 0:
            print("4 steps", step, f"error {error.item():.4f} adversary {loss.item():.3f}", flush=True)

    record("lightning", first=args.first, second=args.second, batch=args.batch, guidance=args.guidance)
    publish("emoji-lightning", average.unet, lambda text: draw(average, text), data)


if __name__ == "__main__":
    with stage("lightning"):
        main()
