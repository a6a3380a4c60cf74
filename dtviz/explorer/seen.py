"""A trace made ready to be looked at: every step's pictures, how far each is from the final image, how much the seeds differ.

    seen = Seen.look(trace, pair=pair, embed=dtviz.embedder("efficientnet-lite0"))
    seen.pictures[2, 0]                     # what the first sample planned at the third step, (height, width, 3) uint8
    seen.distances[:, 0]                    # its similarity-to-final curve
    seen.region((0, 0, 32, 64), 0)          # the same of the upper half alone

Without a pair it takes no model: colours are then the preview that the trace carries, or its latents' principal components,
and distances those of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..curves import concept_timeline, similarity_to_final
from ..decode import Preview, decode_latents, fit_preview
from ..diversity import Estimate, mean_pairwise, vendi
from ..trace import Trace
from .state import check_box

MOST = 384  # pixels, on a side, of the pictures that are kept: all steps of all seeds are in memory at once
LATENT = "latent cosine distance"  # the distance's title where no embedder is at hand


@dataclass(frozen=True, repr=False)
class Seen:
    """A trace's pictures and features; the last frame is the final image.

    Attributes:
        trace: what was looked at.
        pictures: (step + 1, sample, height, width, 3) uint8, the plans x̂0 and then the final images.
        noisy: the same of x_t and then the final samples; None where the trace holds no x_t.
        features: (step + 1, sample, d) float32, of what `pictures` shows.
        distances: (step, sample), similarity to final.
        measure: the distance's title; colours: how latents became colours, "" for the pair's own autoencoder.
        embed: images to features; None: the latents themselves are the features.
    """

    trace: Trace
    pictures: np.ndarray
    noisy: np.ndarray | None
    features: np.ndarray
    distances: np.ndarray
    measure: str
    colours: str
    embed: Callable[[np.ndarray], np.ndarray] | None

    @classmethod
    def look(
        cls,
        trace: Trace,
        *,
        pair: Any = None,
        embed: Any = None,
        vae: Any = None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> Seen:
        """Decode and embed every step once.

        Args:
            trace: of images; a trace of videos is refused.
            pair: a `Pair` or a pipeline, whose autoencoder decodes; None: no model is used at all.
            embed: an embedder; None: distances of the latents.
            vae: decodes in place of the pair's autoencoder, see `decode`.
            tick: called after each step with how many are done, of how many; what it raises ends the work.

        Raises:
            ValueError: the trace is empty or not finite.
            NotImplementedError: its latents are not those of images.
        """
        if trace.x0.ndim != 5 and pair is None:
            raise NotImplementedError(
                f"latents of shape {tuple(trace.final.shape[1:])} are packed or of a video: give the pair that decodes them"
            )
        colours = ""
        if pair is None:
            vae, colours = colours_of(trace)
            embed = None
        parts = [*trace.x0, trace.final]
        total = len(parts) if trace.x_t is None else 2 * len(parts) - 1
        pictures, features, noisy = [], [], []
        for i, latents in enumerate(parts):
            images = _images(latents, pair, vae)
            features.append(flat(latents) if embed is None else embed(images))
            pictures.append(_shown(images))
            tick(i + 1, total)
        for i, latents in enumerate(() if trace.x_t is None else trace.x_t):
            noisy.append(_shown(_images(latents, pair, vae)))
            tick(len(parts) + i + 1, total)
        stacked = np.stack(features)
        return cls(
            trace=trace,
            pictures=np.stack(pictures),
            noisy=np.stack([*noisy, pictures[-1]]) if noisy else None,
            features=stacked,
            distances=similarity_to_final(stacked[:-1], stacked[-1]),
            measure=LATENT if embed is None else f"{embed.title} distance",
            colours=colours,
            embed=embed,
        )

    @property
    def steps(self) -> int:
        """How many steps there are; frame number `steps` is the final image."""
        return len(self.distances)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures, in which boxes are given."""
        return self.pictures.shape[2:4]

    def spread(self, frame: int) -> Estimate | None:
        """Mean pairwise distance of the samples at a frame, with its interval; None of a single sample."""
        return mean_pairwise(self.features[frame]) if self.features.shape[1] > 1 else None

    def vendi(self, frame: int) -> float:
        """The effective number of different images at a frame (q = 2)."""
        return vendi(self.features[frame])

    def region(self, box: Sequence[int], sample: int) -> np.ndarray:
        """(step,) similarity to final of a region alone, cut out of every step's picture of one sample.

        Without an embedder the region is that of the latents' cells that it touches. ValueError: a box outside the picture.
        """
        height, width = self.size
        top, left, bottom, right = check_box(box, height, width)
        if self.embed is not None:
            cut = self.pictures[:, sample, top:bottom, left:right].astype(np.float32) / 255
            features = self.embed(np.ascontiguousarray(cut.transpose(0, 3, 1, 2)))
        else:
            latents = torch.stack([*self.trace.x0[:, sample], self.trace.final[sample]])
            rows, columns = latents.shape[-2:]
            down = slice(top * rows // height, -(-bottom * rows // height))
            across = slice(left * columns // width, -(-right * columns // width))
            features = flat(latents[..., down, across])
        return similarity_to_final(features[:-1, None], features[-1:])[:, 0]

    def timeline(self, text: Any, words: Sequence[str], sample: int) -> np.ndarray:
        """(step + 1, word) cosines of one sample's pictures with some words, by an embedder with a text half."""
        pictures = self.pictures[:, sample].astype(np.float32) / 255
        features = text(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return concept_timeline(features[:, None], text.text(list(words)))[:, 0]


def flat(latents: torch.Tensor) -> np.ndarray:
    """(n, ...) latents as (n, d) float32 features."""
    return latents.flatten(1).float().numpy()


def with_preview(trace: Trace, pair: Any, *, size: tuple[int, ...] | None = None) -> Trace:
    """The trace with a linear preview of its colours in its provenance, so that it can be looked at without a model."""
    if trace.x0.ndim != 5 or trace.provenance.get("preview"):
        return trace
    return replace(trace, provenance=trace.provenance | {"preview": fit_preview(trace, pair, size=size).facts()})


def colours_of(trace: Trace) -> tuple[Preview | None, str]:
    """How to make colours of a trace's latents without a model, and what to call it: the best of what there is."""
    if trace.provenance.get("preview"):
        preview = Preview.build(trace.provenance["preview"])
        return preview, f"linear preview of the latents (R² {preview.r2:.2f})"
    if trace.x0.shape[2] == 3:
        return None, ""  # the samples are images themselves
    pixels = trace.final.float().movedim(1, -1).flatten(0, -2)
    mean = pixels.mean(dim=0)
    directions = torch.linalg.svd(pixels - mean, full_matrices=False).Vh[:3].T
    low, high = (torch.quantile((pixels - mean) @ directions, q, dim=0) for q in (0.01, 0.99))
    scale = 1 / (high - low).clamp(min=1e-6)
    weights = torch.cat([directions * scale, (-(mean @ directions + low) * scale)[None]])
    return Preview(weights, 8, float("nan")), "false colours: the latents' first three principal components"


def _images(latents: torch.Tensor, pair: Any, vae: Any) -> torch.Tensor:
    images = decode_latents(latents, pair, vae=vae)
    if images.ndim != 4:
        raise NotImplementedError(f"an explorer shows images, and these are videos of shape {tuple(images.shape[1:])}")
    return images


def _shown(images: torch.Tensor) -> np.ndarray:
    """(n, 3, height, width) in [0, 1] -> (n, height, width, 3) uint8, large ones made smaller."""
    scale = MOST / max(images.shape[-2:])
    if scale < 1:
        images = torch.nn.functional.interpolate(images, scale_factor=scale, mode="area")
    return (images * 255).round().byte().movedim(1, -1).numpy()
