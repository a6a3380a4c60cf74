"""Decode latents to images, by the pipeline's autoencoder or a linear preview of it."""

import inspect
import math
from typing import Any

import torch

from ..files import in_batches
from .trace import Trace

PARTS = ("x0", "final", "x_t", "conditional", "unconditional")
# Autoencoders whose decoding is tested against their pipelines' own images
IMAGE_VAES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
VIDEO_VAES = ("AutoencoderKLCogVideoX", "AutoencoderKLWan", "AutoencoderKLQwenImage")


def decode(trace: Trace, pair, *, what="x0", final=False, vae=None, size=None, batch_size=None) -> torch.Tensor:
    """Decode one part of a trace.

    Args:
        trace: a trace of `generate` or `capture`.
        pair: a `Pair`, or the diffusers pipeline that ran.
        what: "x0", the predicted image of every step; "final"; "x_t", the noisy latents; "conditional" or "unconditional",
            x0 before guidance.
        final: short for `what="final"`.
        vae: decoder to use instead of the pipeline's own: diffusers' `AutoencoderTiny`, or a `Preview` of `fit_preview`.
        size: (height, width) in pixels, needed for packed latents that are not square (Flux).
        batch_size: latents decoded together. None: 64 at 8x8, one at SDXL's 128x128.

    Returns:
        float32 in [0, 1]: (step, sample, 3, height, width), without the step for "final". Videos have frames before the 3.

    Raises:
        NotImplementedError: the latents are not images, or do not fit a supported autoencoder.
        ValueError: `what` is unknown, the trace does not hold it, or `size` does not fit.

        images = dtviz.decode(trace, pair)  # images[3, 0]: the first sample's predicted image at the fourth step
    """
    what, options = "final" if final else what, {"vae": vae, "size": size, "batch_size": batch_size}
    if what not in PARTS:
        raise ValueError(f"what={what!r} is not one of {', '.join(PARTS)}")
    latents = getattr(trace, what)
    if latents is None:
        option = "x_t=True" if what == "x_t" else "guidance=True"
        raise ValueError(f"this trace holds no {what}: generate or capture it with {option}")
    if what == "final":
        return decode_latents(latents, pair, **options)
    return decode_latents(latents.flatten(0, 1), pair, **options).unflatten(0, latents.shape[:2])


@torch.no_grad()
def decode_latents(latents: torch.Tensor, pair: Any, *, vae: Any = None, size=None, batch_size=None) -> torch.Tensor:
    """Decode (n, ...) latents in the pipeline's scale and layout to (n, 3, height, width) float32 in [0, 1], see `decode`."""
    pipe = getattr(pair, "pipeline", pair)
    latents = _unpack(latents, pipe, size)
    vae = getattr(pipe, "vae", None) if vae is None else vae
    _check_latents(latents, pipe, vae)
    images, batch = None, batch_size or max(1, 4096 // math.prod(latents.shape[2:]))
    work = lambda rows: _images(_to_vae(latents[rows], pipe, vae), vae).float().cpu()  # noqa: E731
    for rows, part in in_batches(work, n=len(latents), size=batch):
        if images is None:  # filled in place, because joining the pieces would hold everything twice
            images = torch.empty(len(latents), *part.shape[1:])
        images[rows] = part
    return images


@torch.no_grad()
def encode(images: torch.Tensor, pair: Any, *, batch_size: int = 64) -> torch.Tensor:
    """Encode images (n, 3, height, width) in [0, 1] to latents (n, ...) float32 in the scale of a pair's pipeline."""
    vae = getattr(getattr(pair, "pipeline", pair), "vae", None)
    if type(vae).__name__ != "AutoencoderKL":
        raise NotImplementedError(f"encoding needs an AutoencoderKL, this pipeline has {type(vae).__name__}")
    parts = torch.as_tensor(images).to(vae.device, vae.dtype).mul(2).sub(1).split(batch_size)
    latents = torch.cat([vae.encode(part).latent_dist.mode().float() for part in parts])
    std, offset, factor = _scaling(vae, latents)
    return (latents - offset) * factor / std


def _check_latents(latents: torch.Tensor, pipe, vae) -> None:
    """Refuse latents that this decoder does not take, or whose scale is not known."""
    name, kind, shape = type(pipe).__name__, type(vae).__name__, tuple(latents.shape[1:])
    config, fits = getattr(vae, "config", {}), False
    if vae is None:
        others = [part for part, it in vars(pipe).items() if hasattr(it, "decode") and hasattr(it, "config")]
        fits = not others and latents.ndim == 4 and shape[0] == 3  # images
        kind = f"its {others[0]}" if others else "no autoencoder"
    elif isinstance(vae, Preview):
        fits = latents.ndim == 4 and shape[0] == len(vae.weights) - 1
    elif kind in IMAGE_VAES:
        fits = latents.ndim == 4 and shape[0] == config.latent_channels and config.get("out_channels", 3) == 3
    elif kind in VIDEO_VAES:
        channels = shape[1 if kind == "AutoencoderKLCogVideoX" else 0]  # its latents have the frames first
        fits = latents.ndim == 5 and channels == (config.get("latent_channels") or config.z_dim)
    if not fits:
        raise NotImplementedError(f"{name} with {kind}: decoding its latents of shape {shape} is not supported")


def _unpack(latents: torch.Tensor, pipe, size: tuple[int, ...] | None) -> torch.Tensor:
    """Unpack tokens (n, token, channel) to (n, channel, height, width) with the pipeline's own method."""
    if latents.ndim != 3:
        return latents
    own, tokens = getattr(pipe, "_unpack_latents", None), latents.shape[1]
    if own is None or list(inspect.signature(own).parameters)[1:] != ["height", "width", "vae_scale_factor"]:
        shape = tuple(latents.shape[1:])
        name = "no pipeline" if pipe is None else type(pipe).__name__
        raise NotImplementedError(f"{name}: unpacking its packed latents of shape {shape} is not supported")
    patch = 2 * pipe.vae_scale_factor
    if size is None:
        side = math.isqrt(tokens)
        if side**2 != tokens:
            raise ValueError(f"size=None: {tokens} packed latents are not a square; give (height, width) in pixels")
        size = (side * patch, side * patch)
    expected = (size[0] // patch) * (size[1] // patch)
    if tokens != expected:
        raise ValueError(f"size={size} makes {expected} packed latents, the trace has {tokens}")
    return own(latents, *size, pipe.vae_scale_factor)


def _to_vae(latents: torch.Tensor, pipe, vae) -> torch.Tensor:
    """Convert latents from the denoiser's scale to the autoencoder's."""
    if vae is None or isinstance(vae, Preview):
        return latents
    hook = getattr(vae, "_hf_hook", None)  # an offloaded module is in host memory until it is called
    latents = latents.to(getattr(hook, "execution_device", None) or vae.device, torch.float32)
    if pipe.scheduler.config.get("prediction_type") == "trigflow":  # SANA-Sprint's samples have the data's deviation
        latents = latents / pipe.scheduler.config.sigma_data
    if type(vae).__name__ == "AutoencoderKLCogVideoX":
        latents = latents.transpose(1, 2)
    std, offset, factor = _scaling(vae, latents)
    return latents * std / factor + offset


def _scaling(vae, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return deviation, offset and factor of latents. The denoiser's are (latents - offset) * factor / deviation."""
    values, shape = (vae.config.get("latents_std") or 1.0, vae.config.get("latents_mean") or 0.0), [1] * (like.ndim - 2)
    std, mean = (torch.as_tensor(v, device=like.device, dtype=torch.float32).reshape(-1, *shape) for v in values)
    return std, mean + (vae.config.get("shift_factor") or 0.0), vae.config.get("scaling_factor") or 1.0


def _images(latents: torch.Tensor, vae) -> torch.Tensor:
    """Decode latents at the autoencoder's scale to images in [0, 1]."""
    if isinstance(vae, Preview):
        return vae(latents)
    images = latents if vae is None else _decoded(latents, vae)
    if type(vae).__name__ in VIDEO_VAES:
        images = images.transpose(1, 2)  # (n, frame, 3, height, width)
        if type(vae).__name__ == "AutoencoderKLQwenImage":  # a video autoencoder for single images
            images = images[:, 0]
    return images.div(2).add(0.5).clamp(0, 1)


def _decoded(latents: torch.Tensor, vae) -> torch.Tensor:
    """Decode, again in float32 where half precision overflows, as SDXL's autoencoder does."""
    kind = vae.dtype
    if kind != torch.float16 or not vae.config.get("force_upcast", False):
        images = vae.decode(latents.to(kind), return_dict=False)[0]
        if kind not in (torch.float16, torch.bfloat16) or images.isfinite().all():
            return images
    vae.float()  # `.to(dtype)` of diffusers logs a warning each time
    try:
        return vae.decode(latents.float(), return_dict=False)[0]
    finally:
        vae.half() if kind == torch.float16 else vae.bfloat16()


class Preview:
    """A linear map from latent channels to red, green and blue: rough, without a network."""

    def __init__(self, weights: Any, scale: int, r2: float) -> None:
        self.weights = torch.as_tensor(weights)  # (channel + 1, 3), the last row the offset
        self.scale, self.r2 = scale, r2  # pixels per latent cell and side; explained variance

    def facts(self) -> dict[str, Any]:
        """Return the map as JSON-compatible numbers. `Preview(**facts)` is the inverse."""
        return {"weights": self.weights.tolist(), "scale": self.scale, "r2": self.r2}

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Map (n, channel, height, width) to (n, 3, scale * height, scale * width) float32 in [0, 1]."""
        colours = torch.einsum("nchw,cr->nrhw", latents.float(), self.weights[:-1]) + self.weights[-1][:, None, None]
        return torch.nn.functional.interpolate(colours, scale_factor=self.scale, mode="bilinear").clamp(0, 1)


def fit_preview(trace: Trace, pair: Any, *, most: int = 64, size: tuple[int, ...] | None = None) -> Preview:
    """Fit a `Preview` to the pipeline's own decoding of at most `most` of a trace's last x0. ValueError for videos.

    images = dtviz.decode(trace, pair, vae=dtviz.fit_preview(trace, pair))
    """
    pipe, latents = getattr(pair, "pipeline", pair), trace.x0.flatten(0, 1)[-most:].float()
    images = decode_latents(latents, pair, size=size)
    latents = _unpack(latents, pipe, size)
    if latents.ndim != 4 or images.ndim != 4:
        raise ValueError(f"a preview needs images, this trace's latents have the shape {tuple(latents.shape[1:])}")
    scale = images.shape[-1] // latents.shape[-1]
    means = torch.nn.functional.avg_pool2d(images, scale)
    inputs = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).transpose(0, 1).flatten(1).T.double()
    targets = means.transpose(0, 1).flatten(1).T.double()
    weights = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution
    left = (targets - inputs @ weights).var() / targets.var().clamp(min=1e-12)
    return Preview(weights.float(), scale, 1 - float(left))
