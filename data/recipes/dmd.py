"""Stage 7: the four-step distilled model, by distribution matching distillation (DMD2, Yin et al. 2024).

    python data/recipes/dmd.py --steps 2500

The distilled model starts as the base. Each iteration rolls it without gradient to one of its four timesteps (backward
simulation), then the fake score learns to denoise what the distilled model makes; every fifth iteration the distilled model moves
along the difference between the fake score and the guided base. No adversarial head.

With another `--shift` than the base's, its four noise levels are those of a schedule shifted so: an ablation, which
`shift.py` measures and nothing ships.
"""

import torch
import torch.nn.functional as F
from base import Conditioning
from common import DEVICE, SHIFT, WORK, Checkpoint, arguments, concepts, record, stage
from distil import TIMESTEPS, Denoiser, copies, descend, follow, optimizer, publish, shifted


def student_input(
    student: Denoiser, text: torch.Tensor, steps: int, timesteps: tuple[int, ...] = TIMESTEPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t and t after `steps` steps of the distilled model's own sampler, without gradient."""
    x_t = torch.randn(len(text), 16, 8, 8, device=DEVICE)
    times = [torch.full((len(text),), t, device=DEVICE) for t in timesteps]
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
        real = teacher.x0(z, t, teacher.guided(z, t, text, empty, guidance))
        made = fake.x0(z, t, fake.noise(z, t, text))
        gradient = (made - real) / (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    return 0.5 * F.mse_loss(x0, (x0 - gradient).detach())


def draw(student: Denoiser, text: torch.Tensor) -> torch.Tensor:
    """Four steps as the distilled model was trained: x0, noised anew to the next level."""
    x_t, t = student_input(student, text, len(TIMESTEPS) - 1)
    return student.x0(x_t, t, student.noise(x_t, t, text))


def main() -> None:
    args = arguments(steps=2500, batch=64, lr=1e-4, fake_lr=2e-4, guidance=3.0, ratio=5, ema=0.98, shift=SHIFT)
    timesteps, data = shifted(args.shift), Conditioning()
    name = "dmd" if args.shift == SHIFT else f"dmd-shift-{args.shift:g}"
    teacher, student, fake, average = copies(4, frozen=(0, 3))
    moves, learns = optimizer(student.unet.parameters(), args.lr), optimizer(fake.unet.parameters(), args.fake_lr)
    checkpoint = Checkpoint(
        name, student=student.unet, fake=fake.unet, average=average.unet, moves=moves, learns=learns
    )
    empty = data.text[data.empty].expand(args.batch, -1, -1)
    for step in range(checkpoint.resume(), args.steps):
        text = data.text[torch.randint(len(concepts()), (args.batch,), device=DEVICE)]
        x_t, t = student_input(student, text, int(torch.randint(len(timesteps), ())), timesteps)
        student_turn = step % args.ratio == args.ratio - 1
        with torch.set_grad_enabled(student_turn):
            x0 = student.x0(x_t, t, student.noise(x_t, t, text))
        if student_turn:
            value = matching_loss(x0, text, empty, teacher, fake, args.guidance)
            descend(value, moves, args.lr, step, args.steps)
            follow(average, student, args.ema)
        s, noise = torch.randint(1000, (args.batch,), device=DEVICE), torch.randn_like(x0)
        value = F.mse_loss(fake.noise(fake.add_noise(x0.detach(), s, noise), s, text), noise)
        descend(value, learns, args.fake_lr, step, args.steps)
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 50 == 0:
            print(step, f"fake loss {value.item():.4f}", flush=True)

    if name != "dmd":
        average.unet.half().save_pretrained(WORK / name)
        return
    record("dmd", steps=args.steps, student_updates=args.steps // args.ratio, guidance=args.guidance)
    publish("emoji-dmd", average.unet, lambda text: draw(average, text), data)


if __name__ == "__main__":
    with stage("dmd"):
        main()
