"""Stage 2: the KL autoencoder, 64x64x3 -> 8x8x16, trained on painted pictures of every drawing but the held-out concepts'.

    python data/recipes/vae.py --steps 6000
    python data/recipes/vae.py --steps 0 --decoder-steps 6000    # the decoder of the published one alone

The published model's latents have zero mean and unit variance in every channel: the normalisation is folded into
the 1x1 convolutions around the latents, so diffusers' one scaling factor is 1. The decoder is then trained on, two pictures in three
of the concepts that the base draws, on latents with a little noise, as a sampler leaves some.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from common import DEVICE, MODELS, Checkpoint, arguments, concepts, contact_sheet, cosine, follow, record, stage
from diffusers import AutoencoderKL
from world import World, sample_factors

FOLDER = MODELS / "emoji-base" / "vae"
NOISE = 0.12  # the most that the decoder learns to bear, in latents' standard deviations


def build() -> AutoencoderKL:
    """The untrained autoencoder, 3.5 M parameters."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(32, 64, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=16,
        sample_size=64,
        scaling_factor=1.0,
    )


def edges(images: torch.Tensor) -> torch.Tensor:
    """Horizontal and vertical differences of (n, 3, h, w), flattened."""
    across, down = images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
    return torch.cat([across.flatten(1), down.flatten(1)], dim=1)


def pixels(output: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + edges of a reconstruction."""
    error = 0.2 * F.l1_loss(output, images) + 4 * F.mse_loss(output, images)
    return error + 0.15 * F.l1_loss(edges(output), edges(images))


def fold_normalisation(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Rescale the latents to zero mean and unit variance a channel, in place, without changing a reconstruction."""
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight.flatten(1) * mean).sum(1)
    post.weight *= std.view(1, -1, 1, 1)


class Painter:
    """Painted pictures of random drawings among `rows`, in the layout that trains fastest."""

    def __init__(self) -> None:
        self.world, self.generator = World(), torch.Generator().manual_seed(0)
        held_out = torch.from_numpy(self.world.held_out)
        self.seen, self.unseen = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
        self.chosen = torch.from_numpy(np.isin(self.world.concept, concepts()).nonzero()[0])

    def paint(self, *groups: tuple[torch.Tensor, int]) -> torch.Tensor:
        """So many pictures of each group of rows."""
        rows = torch.cat([rows[torch.randint(len(rows), (n,), generator=self.generator)] for rows, n in groups])
        factors = sample_factors(len(rows), generator=self.generator)
        return self.world.paint(rows, factors).to(DEVICE, memory_format=torch.channels_last)


def train(vae: AutoencoderKL, painter: Painter, args, *, decoder: bool) -> AutoencoderKL:
    """The average of the weights after training all of it, or the decoder alone on the encoder's latents."""
    vae.requires_grad_(not decoder)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    average = copy.deepcopy(vae).requires_grad_(False).eval()
    parameters = [p for p in vae.parameters() if p.requires_grad]
    steps, batch, lr = (
        (args.decoder_steps, args.decoder_batch, args.decoder_lr) if decoder else (args.steps, args.batch, args.lr)
    )
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint("vae_decoder" if decoder else "vae", vae=vae, average=average, optimizer=optimizer)
    groups = ((painter.seen, batch // 3), (painter.chosen, batch - batch // 3)) if decoder else ((painter.seen, batch),)
    for step in range(checkpoint.resume(), steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step, steps)
        images = painter.paint(*groups)
        with torch.autocast(DEVICE.type, torch.bfloat16), torch.set_grad_enabled(not decoder):
            posterior = vae.encode(images).latent_dist
        if decoder:
            noise = NOISE * torch.rand(batch, 1, 1, 1, device=DEVICE) * torch.randn_like(posterior.mean)
            latents, rate = posterior.mean + noise, 0.0
        else:
            latents, rate = posterior.sample(), 1e-6 * posterior.kl().mean()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            output = vae.decode(latents).sample
        value = pixels(output.float(), images) + rate
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, vae, min(args.ema, (step + 1) / (step + 10)))
        checkpoint.save(step + 1, last=step + 1 == steps)
        if step % 100 == 0:
            print(checkpoint.path.stem, step, f"loss {value.item():.4f}", flush=True)
    return average


@torch.inference_mode()
def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images of the reconstruction's PSNR in dB, on the [0, 1] range."""
    output = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in images.split(64)])
    return float((-10 * ((output - images) / 2).square().mean((1, 2, 3)).log10()).mean())


def main() -> None:
    args = arguments(steps=6000, batch=64, lr=1e-3, decoder_steps=6000, decoder_batch=24, decoder_lr=4e-4, ema=0.995)
    painter = Painter()
    checks = {name: painter.paint((getattr(painter, name), 320)) for name in ("chosen", "unseen")}
    if args.steps:
        vae = train(build().to(DEVICE, memory_format=torch.channels_last).train(), painter, args, decoder=False)
        with torch.inference_mode():
            parts = [vae.encode(painter.paint((painter.seen, 64))).latent_dist.mean for _ in range(32)]
            fold_normalisation(vae, torch.cat(parts))
    else:
        vae = AutoencoderKL.from_pretrained(FOLDER, dtype=torch.float32).to(DEVICE, memory_format=torch.channels_last)
    before = {name: psnr(vae, images) for name, images in checks.items()}
    vae = train(vae, painter, args, decoder=True)
    record(
        "vae",
        steps=args.steps,
        decoder_steps=args.decoder_steps,
        before=before,
        **{f"psnr_{name}": psnr(vae, images) for name, images in checks.items()},
    )
    pictures = torch.cat([images[:48] for images in checks.values()])
    with torch.inference_mode():
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    rows = zip(pictures.split(16), output.split(16), strict=True)
    contact_sheet(torch.cat([torch.cat(pair) for pair in rows]), 16, MODELS.parent / "recipes" / "work" / "vae.png")
    vae.register_to_config(_name_or_path="")  # not this machine's path
    vae.to(memory_format=torch.contiguous_format).half().save_pretrained(FOLDER)


if __name__ == "__main__":
    with stage("vae"):
        main()
