"""Whether a base and a student fit: what one hands over, the other has to understand.

check_fit(base, student, name="distilled")       # raises a ValueError that says what differs
"""

from __future__ import annotations

from typing import Any

import torch

from .rules import prediction, space

# What both networks of a pair are given by one pipeline call: how their configs name it -> what it is
_SHARED = {
    "in_channels": "latent channels",
    "cross_attention_dim": "text channels",
    "joint_attention_dim": "text channels",
    "caption_channels": "text channels",
    "pooled_projection_dim": "pooled text channels",
    "projection_class_embeddings_input_dim": "channels of pooled text and sizes",
    "encoder_hid_dim": "text channels",
}
# An autoencoder's latents are another's only where these are the same
_LATENTS = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")


def check_student(base: torch.nn.Module, student: Any, *, name: str) -> None:
    """Refuse what cannot be a student of this base; `name` is the argument that it was given as.

    Raises:
        ValueError: no denoiser, no adapter that is loaded on the base, or one of other latents or other text.
    """
    if isinstance(student, str):
        adapters = list(getattr(base, "peft_config", {}))
        if student not in adapters:
            raise ValueError(f"{name}={student!r} is not an adapter of the base denoiser, which has {adapters}")
        return
    if not isinstance(student, torch.nn.Module):
        raise ValueError(
            f"{name} is a {type(student).__name__}: give a denoiser module, an adapter's name or a pipeline that holds one"
        )
    for key, what in _SHARED.items():
        ours, theirs = base.config.get(key), student.config.get(key)
        if ours != theirs:
            raise ValueError(f"{name} takes {theirs} {what}, the base {ours}: not a pair ({key} of their configs)")


def check_schedulers(base: Any, student: Any) -> None:
    """Refuse to run the base on its student's scheduler if that reads its output as something else.

    Raises:
        ValueError: the denoisers predict different things.
    """
    kinds = [f"{prediction(s)} in {space(s)} space" for s in (base, student)]
    if prediction(base) != prediction(student):
        raise ValueError(
            f"handover='distilled-scheduler' runs the base on the student's {type(student).__name__}, which takes {kinds[1]}, "
            f"and the base predicts {kinds[0]}: use handover='matched-sigma'"
        )


def check_autoencoders(base: Any, student: Any) -> None:
    """Refuse two pipelines whose latents are not the same.

    Raises:
        ValueError: one's latents mean something else to the other.
    """
    ours, theirs = (getattr(pipe, "vae", None) for pipe in (base, student))
    if ours is None or theirs is None:
        return
    if type(ours) is not type(theirs):
        raise ValueError(f"distilled has a {type(theirs).__name__}, the base a {type(ours).__name__}: not a pair")
    for key in _LATENTS:
        if ours.config.get(key) != theirs.config.get(key):
            found = theirs.config.get(key), ours.config.get(key)
            raise ValueError(f"distilled's autoencoder has {key}={found[0]}, the base's {found[1]}: not a pair")
