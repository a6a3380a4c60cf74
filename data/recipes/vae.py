"""Stage 2: the KL autoencoder, 64x64x3 -> 8x8x16, trained on every drawing except the held-out concepts.

    python data/recipes/vae.py --steps 4000

The published model's latents have zero mean and unit variance in every channel: the normalisation is folded into
the 1x1 convolutions around the latents, so diffusers' one scaling factor is 1.
"""

import torch
import torch.nn.functional as F
from common import DEVICE, MODELS, Checkpoint, arguments, as_images, contact_sheet, cosine, drawings, record, stage
from diffusers import AutoencoderKL


def build() -> AutoencoderKL:
    """The untrained autoencoder, 1.9 M parameters."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(32, 48, 64, 96),
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


def loss(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + edges of the reconstruction from a sampled latent, and a small KL."""
    posterior = vae.encode(images).latent_dist
    output = vae.decode(posterior.sample()).sample.float()
    pixels = 0.2 * F.l1_loss(output, images) + 4 * F.mse_loss(output, images)
    return pixels + 0.1 * F.l1_loss(edges(output), edges(images)) + 1e-6 * posterior.kl().mean()


def fold_normalisation(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Rescale the latents to zero mean and unit variance a channel, in place, without changing a reconstruction."""
    latents = torch.cat([vae.encode(batch.to(DEVICE)).latent_dist.mean for batch in images.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight.flatten(1) * mean).sum(1)
    post.weight *= std.view(1, -1, 1, 1)


def polish(vae: AutoencoderKL, images: torch.Tensor, *, steps: int, batch: int, lr: float) -> None:
    """Train the decoder alone, on the encoder's fixed latents, towards PSNR."""
    images = torch.cat([images, images.flip(-1)])
    with torch.inference_mode():
        latents = torch.cat([vae.encode(part.to(DEVICE)).latent_dist.mean for part in images.split(64)]).clone()
    vae.requires_grad_(False)
    parameters = [
        *vae.decoder.requires_grad_(True).parameters(),
        *vae.post_quant_conv.requires_grad_(True).parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint("vae_decoder", every=200, vae=vae, optimizer=optimizer)
    for step in range(checkpoint.resume(), steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step, steps)
        chosen = torch.randint(len(images), (batch,))
        with torch.autocast(DEVICE.type, torch.bfloat16):
            output = vae.decode(latents[chosen]).sample.float()
        value = F.mse_loss(output, images[chosen].to(DEVICE))
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        checkpoint.save(step + 1, last=step + 1 == steps)
        if step % 200 == 0:
            print(step, f"decoder loss {value.item():.4f}", flush=True)


def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images of the reconstruction's PSNR in dB, on the [0, 1] range."""
    errors = [
        (vae.decode(vae.encode(batch.to(DEVICE)).latent_dist.mean).sample.clamp(-1, 1) - batch.to(DEVICE)) / 2
        for batch in images.split(64)
    ]
    return float((-10 * torch.cat(errors).square().mean((1, 2, 3)).log10()).mean())


def main() -> None:
    args = arguments(steps=4000, batch=8, lr=1e-3, decoder_steps=1600, decoder_lr=4e-4)
    data = drawings()
    seen, unseen = as_images(data["images"][~data["held_out"]]), as_images(data["images"][data["held_out"]])
    vae = build().to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint("vae", every=400, vae=vae, optimizer=optimizer)
    for step in range(checkpoint.resume(), args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine(step, args.steps)
        images = seen[torch.randint(len(seen), (args.batch,))].to(DEVICE)
        images = torch.where(torch.rand(len(images), 1, 1, 1, device=DEVICE) < 0.5, images.flip(-1), images)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss(vae, images)
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 200 == 0:
            print(step, f"loss {value.item():.4f}", flush=True)

    vae.eval()
    with torch.no_grad():
        fold_normalisation(vae, seen[::4])
    polish(vae, seen, steps=args.decoder_steps, batch=args.batch, lr=args.decoder_lr)
    with torch.inference_mode():
        record("vae", steps=args.steps, psnr_seen=psnr(vae, seen[::16]), psnr_unseen=psnr(vae, unseen))
        pictures = unseen[:48].to(DEVICE)
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        rows = zip(pictures.split(16), output.split(16), strict=True)
        contact_sheet(torch.cat([torch.cat(pair) for pair in rows]), 16, checkpoint.path.with_suffix(".png"))
    vae.save_pretrained(MODELS / "emoji-base" / "vae")


if __name__ == "__main__":
    with stage("vae"):
        main()
