"""The denoiser's conditional and unconditional outputs, told apart by how guidance mixed them.

Pipelines run classifier-free guidance in one doubled batch or in two calls, in either order, and some turn the sign
or rescale the result. What all of them make is g = s (u + w (c - u)) with w > 1 for each sample, so that c is the output
with the larger share in g, whatever the order.
"""

from __future__ import annotations

import torch


def split(outputs: list[torch.Tensor], guided: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The conditional and the unconditional output behind a guided one.

    Args:
        outputs: what the denoiser returned since the last step: (n, ...) or (2n, ...), any number of calls.
        guided: (n, ...) what the pipeline gave to its scheduler.

    Returns:
        Both with `guided`'s shape; None for the unconditional one where the pipeline computed none.

    Raises:
        NotImplementedError: `guided` is not a mix of two such outputs, as with three-fold guidance.
    """
    n = len(guided)
    parts = [part for output in outputs for part in (output.split(n) if len(output) % n == 0 else [output])]
    parts = [part[:, : guided.shape[1]] for part in parts]  # without a learned variance, or a reference image's tokens
    if not 1 <= len(parts) <= 2 or any(part.shape != guided.shape for part in parts):
        shapes = [tuple(output.shape) for output in outputs]
        raise NotImplementedError(
            f"guidance=True needs one or two denoiser outputs a step of the scheduler's shape {tuple(guided.shape)}; "
            f"this pipeline's have {shapes}: capture it without"
        )
    if len(parts) == 1:
        return guided, None
    shares = _shares(parts, guided)
    if shares.sum() < 0:
        parts, shares = [-part for part in parts], -shares
    return (parts[0], parts[1]) if shares[0] > shares[1] else (parts[1], parts[0])


def _shares(parts: list[torch.Tensor], guided: torch.Tensor) -> torch.Tensor:
    """Least-squares shares of the two parts in each sample's guided output, summed over samples."""
    a = torch.stack([part.flatten(1).double().cpu() for part in parts], dim=-1)
    g = guided.flatten(1).double().cpu().unsqueeze(-1)
    # Equal outputs share alike under the minimum-norm solution, and their order does not matter.
    shares = torch.linalg.pinv(a, rtol=1e-6) @ g
    unexplained = float((g - a @ shares).norm() / g.norm().clamp(min=1e-30))
    if unexplained > 0.5:
        raise NotImplementedError(
            f"guidance=True found {unexplained:.0%} of the scheduler's input unexplained by the denoiser's two outputs: "
            "this pipeline guides another way, capture it without"
        )
    return shares.sum(dim=(0, 2))
