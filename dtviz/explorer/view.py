"""Decode and measure every step of a trace once, so that an explorer can show any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..core.decode import Preview, decode_latents, fit_preview
from ..core.trace import Trace
from ..metrics.similarity import concept_timeline, similarity_to_final

MAX_SIZE = 384  # pixels on a side of the images that are kept: all steps of all samples are in memory


@dataclass(frozen=True, repr=False, eq=False)
class View:
    """Images and features of a trace. The last frame is the final image."""

    trace: Trace
    images: np.ndarray  # (step + 1, sample, height, width, 3) uint8 of the predicted x0, then the final images
    x_t: np.ndarray | None  # the same of x_t, if the trace holds it
    features: np.ndarray  # (step + 1, sample, d) float32 of `images`, or of the latents without an embedder
    distances: np.ndarray  # (step, sample) 1 - cosine to the final image
    colours: str  # how latents became colours, "" for the pair's own autoencoder
    embed: Any  # embedder of the images, or None

    @classmethod
    def of(cls, trace: Trace, *, pair: Any = None, embed: Any = None, on_frame: Callable = lambda share: None) -> View:
        """Decode and embed every step. Without a pair colours are a preview, without it or an embedder features are latents.

        `on_frame` takes the share of the frames done.
        """
        vae, colours = (None, "") if pair else latent_colours(trace)
        embed = embed if pair else None
        x0, x_t = [*trace.x0, trace.final], [] if trace.x_t is None else [*trace.x_t]
        images, features = [], []
        for i, latents in enumerate(x0 + x_t):
            decoded = decode_latents(latents, pair, vae=vae)
            if decoded.ndim != 4:
                raise NotImplementedError(f"videos of shape {tuple(decoded.shape[1:])} cannot be shown, only images")
            images.append(_to_uint8(decoded))
            if i < len(x0):
                features.append(embed(decoded) if embed else latents.flatten(1).float().numpy())
            on_frame((i + 1) / len(x0 + x_t))
        x0, x_t = np.stack(images[: len(x0)]), np.stack([*images[len(x0) :], images[len(x0) - 1]]) if x_t else None
        distances = similarity_to_final(np.stack(features[:-1]), features[-1])
        return cls(trace, x0, x_t, np.stack(features), distances, colours, embed)

    @property
    def steps(self) -> int:
        """Number of steps. Frame `steps` is the final image."""
        return len(self.distances)

    def region(self, box: Sequence[int], sample: int) -> np.ndarray:
        """Return (step,) distances to the final image of a region of one sample's images, by the embedder."""
        top, left, bottom, right = box
        features = self.embed(_to_float(self.images[:, sample, top:bottom, left:right]))
        return similarity_to_final(features[:-1, None], features[-1:])[:, 0]

    def timeline(self, text: Any, words: Sequence[str], sample: int) -> np.ndarray:
        """Return (step, word) cosines of one sample's predicted x0 and words, by an embedder that reads text."""
        features = text(_to_float(self.images[:-1, sample]))
        return concept_timeline(features[:, None], text.text(list(words)))[:, 0]


def with_preview(trace: Trace, pair: Any) -> Trace:
    """Add a linear preview of the colours to a trace, so that it can be shown without a model."""
    if trace.x0.ndim != 5 or trace.provenance.get("preview"):
        return trace
    return replace(trace, provenance=trace.provenance | {"preview": fit_preview(trace, pair).facts()})


def latent_colours(trace: Trace) -> tuple[Preview, str]:
    """Return a map from the latents of a trace to colours without a model, and its description."""
    if trace.x0.ndim != 5:
        shape = tuple(trace.final.shape[1:])
        raise NotImplementedError(f"latents of shape {shape} are packed or of a video: give the pair that decodes them")
    if trace.provenance.get("preview"):
        preview = Preview.build(trace.provenance["preview"])
        return preview, f"linear preview of the latents (R² {preview.r2:.2f})"
    cells = trace.final.float().movedim(1, -1).flatten(0, -2)
    axes = torch.linalg.svd(cells - cells.mean(dim=0), full_matrices=False).Vh[:3].T
    low, high = torch.quantile(cells @ axes, torch.tensor([0.01, 0.99]), dim=0)
    weights = torch.cat([axes, -low[None]]) / (high - low).clamp(min=1e-6)
    return Preview(weights, 8, float("nan")), "false colours: the latents' first three principal components"


def _to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert (n, 3, height, width) in [0, 1] to (n, height, width, 3) uint8 of at most `MAX_SIZE` pixels on a side."""
    scale = MAX_SIZE / max(images.shape[-2:])
    if scale < 1:
        images = torch.nn.functional.interpolate(images, scale_factor=scale, mode="area")
    return (images * 255).round().byte().movedim(1, -1).numpy()


def _to_float(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255
