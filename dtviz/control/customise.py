"""Customisation: a subject or a style learnt from a few images, as a change of a denoiser's weights.

    style = dtviz.control.train_customisation(pair, images, name="line art", prompts=["dog face", "house"])
    dog = dtviz.control.train_dreambooth(pair, photos, name="rex", prompt="sks dog", class_prompt="dog")

Learnt on the base or on a student, and put on the others: W_student + (W_tuned - W_base).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from ..controls import Control
from ..decode import encode
from ..generate import generate
from ..pairs import Pair
from .conditions import Conditions, conditions, predict, schedule
from .optimise import check_numbers, optimise, settled
from .tuned import ATTENTION, CROSS, Tuned, lora, origin, trained_network, weights


def train_customisation(
    pair: Pair,
    images: torch.Tensor,
    *,
    name: str,
    prompts: str | Sequence[str],
    on: str = "base",
    full_rank: bool = False,
    class_prompt: str | None = None,
    prior_images: int = 100,
    prior_weight: float = 1.0,
    drop: float = 0.0,
    rank: int = 4,
    alpha: float = 4.0,
    modules: Sequence[str] = CROSS,
    iterations: int = 500,
    batch_size: int = 2,
    lr: float | None = None,
    seed: int = 0,
    kind: str = "style",
    licence: str = "",
    state: str | Path | None = None,
    progress: bool = True,
) -> Control:
    """Learn a style or a subject in the layers where the text comes in, after Custom Diffusion (Kumari et al. 2023).

    The loss is the model's own: mean squared error of its prediction on the noised images, at uniform timesteps on the base,
    at its own few on a student; with `class_prompt`, plus that on images of the class which the model made itself before,
    so that it keeps them (prior preservation). Custom Diffusion also trains a token's embedding; here the text encoder stays.

    Args:
        pair: base and student; UNets, in float32 or bfloat16.
        images: (n, 3, height, width) in [0, 1], of the size that the pair makes.
        name: of the control.
        prompts: the prompt of all images, or of each.
        on: "base" or "distilled", whose weights and timesteps are used.
        full_rank: train the keys' and values' whole matrices, as Custom Diffusion does, instead of a LoRA on them.
        class_prompt: of the prior's images; None: no prior.
        prior_images: how many of them the model makes.
        prior_weight: their part of the loss; 0 is as good as no prior.
        drop: share of the samples that are learnt without their prompt. For a style that is meant for every prompt: guidance
            would otherwise amplify the difference between the styled and the unstyled.
        rank, alpha: of the LoRA; no use in full rank.
        modules: name endings of what is trained, see `tuned.matching`.
        iterations, batch_size, lr: of AdamW; lr None: 1e-4 for a LoRA, 1e-5 in full rank.
        seed: two trainings of one seed are equal.
        kind, licence: kept with the control.
        state: where the run is kept and taken up again when it was killed, see `optimise`.
        progress: show a bar.

    Returns:
        The `Control`; its facts tell all of the above.

    Raises:
        ValueError: an argument is out of range; the message names it.
        NotImplementedError: the denoiser is not a UNet.
    """
    task = _Task(pair, images, prompts, on, class_prompt, prior_images, prior_weight, drop, modules, batch_size, seed)
    lr = (1e-5 if full_rank else 1e-4) if lr is None else lr
    check_numbers(rank=rank, alpha=alpha, iterations=iterations, lr=lr)
    size = {} if full_rank else {"rank": rank, "alpha": alpha}
    put = weights(pair, on=on, modules=modules) if full_rank else lora(pair, on=on, modules=modules, seed=seed, **size)
    run = {"iterations": iterations, "lr": lr, "seed": seed, "state": state, "progress": progress}
    return _trained(task, put, name, kind, licence, size, run)


def train_dreambooth(
    pair: Pair,
    images: torch.Tensor,
    *,
    name: str,
    prompt: str,
    class_prompt: str,
    on: str = "base",
    prior_images: int = 100,
    prior_weight: float = 1.0,
    rank: int = 4,
    alpha: float = 4.0,
    modules: Sequence[str] = ATTENTION,
    iterations: int = 500,
    batch_size: int = 1,
    lr: float = 1e-4,
    seed: int = 0,
    licence: str = "",
    state: str | Path | None = None,
    progress: bool = True,
) -> Control:
    """Learn a subject under a rare word, as a LoRA on all attention (DreamBooth, Ruiz et al. 2023; diffusers' LoRA form).

    Args:
        prompt: the class with a word that the text encoder hardly knows, such as "sks dog".
        class_prompt: the class alone, "dog", of which the model makes `prior_images` images to be kept.

    The other arguments, what is returned and raised are those of `train_customisation`; the kind is "dreambooth".
    """
    if prompt == class_prompt:
        raise ValueError(f"prompt={prompt!r} is the class_prompt too: add a rare word for the subject")
    task = _Task(pair, images, prompt, on, class_prompt, prior_images, prior_weight, 0.0, modules, batch_size, seed)
    check_numbers(rank=rank, alpha=alpha, iterations=iterations, lr=lr)
    size = {"rank": rank, "alpha": alpha}
    run = {"iterations": iterations, "lr": lr, "seed": seed, "state": state, "progress": progress}
    put = lora(pair, on=on, modules=modules, seed=seed, **size)
    return _trained(task, put, name, "dreambooth", licence, size, run)


@dataclass(frozen=True)
class _Task:
    """What is to be learnt, checked before anything slow begins."""

    pair: Pair
    images: torch.Tensor
    prompts: str | Sequence[str]
    on: str
    class_prompt: str | None
    prior_images: int
    prior_weight: float
    drop: float
    modules: Sequence[str]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        images = self.images
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError("images must be a tensor (n, 3, height, width) in [0, 1], n at least 1")
        if not images.is_floating_point() or not float(images.min()) >= 0 or not float(images.max()) <= 1:
            raise ValueError("images must be floating point within [0, 1]: divide uint8 by 255")
        if len(self.texts) != len(images):
            raise ValueError(f"prompts has {len(self.texts)} texts for {len(images)} images: give one, or one for each")
        check_numbers(batch_size=self.batch_size, prior_images=self.prior_images)
        if not self.prior_weight >= 0:
            raise ValueError(f"prior_weight={self.prior_weight} must be at least 0")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop={self.drop} must be a share of the samples, from 0 to below 1")
        trained_network(self.pair, self.on, self.modules)

    @property
    def texts(self) -> list[str]:
        """The prompt of each image."""
        return [self.prompts] * len(self.images) if isinstance(self.prompts, str) else list(self.prompts)

    def facts(self) -> dict[str, Any]:
        """What of the task makes a training another one."""
        digest = hashlib.sha256(self.images.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
        prior = {"class_prompt": self.class_prompt, "images": self.prior_images, "weight": self.prior_weight}
        return {
            "prompts": list(dict.fromkeys(self.texts)),
            "images": {"number": len(self.images), "sha256": digest[:16]},
            "trained_on": origin(self.pair, self.on),
            "prior": prior if self.class_prompt else None,
            "drop": self.drop,
            "modules": list(self.modules),
            "batch_size": self.batch_size,
        }


def _trained(task: _Task, put, name: str, kind: str, licence: str, how: dict[str, Any], run: dict[str, Any]) -> Control:
    """The control that a training run of this task makes."""
    pair, texts = task.pair, task.texts
    known = conditions(pair, sorted({*texts, *([task.class_prompt] if task.class_prompt else [])}), role=task.on)
    latents = encode(task.images, pair)
    if latents.shape[1:] != known.shape:
        raise ValueError(
            f"images of {tuple(task.images.shape[2:])} pixels give latents {tuple(latents.shape[1:])}, and this pair makes "
            f"{known.shape}: resize them"
        )
    prior = None
    if task.class_prompt:  # before the training: the model as it is
        made = generate(pair, task.class_prompt, method=task.on, seeds=range(task.seed, task.seed + task.prior_images))
        prior = made.final.to(latents)
    settings = task.facts() | how
    with put as tuned:
        noising = DDPMScheduler.from_config(pair.base_scheduler.config)
        times = _timesteps(pair, task.on, noising)

        def loss(_: int, generator: torch.Generator) -> torch.Tensor:
            rows = torch.randint(len(texts), (task.batch_size,), generator=generator)
            dropped = torch.rand(len(rows), generator=generator) < task.drop
            wanted = ["" if out else texts[row] for row, out in zip(rows.tolist(), dropped.tolist(), strict=True)]
            value = _error(tuned, noising, times, latents[rows], known, wanted, generator)
            if prior is None:
                return value
            rows = torch.randint(len(prior), (task.batch_size,), generator=generator)
            own = _error(tuned, noising, times, prior[rows], known, [task.class_prompt] * len(rows), generator)
            return value + task.prior_weight * own

        losses = optimise(tuned.parameters, loss, **run, settings=settings, title=name)
        numbers = {key: run[key] for key in ("iterations", "lr", "seed")}
        facts = settings | numbers | {"licence": licence, "loss": settled(losses)}
        return Control(name, kind, tuned.tensors(), facts)


def _timesteps(pair: Pair, on: str, noising: DDPMScheduler) -> torch.Tensor:
    """All timesteps of training, or the few that a student knows."""
    if on == "base":
        return torch.arange(noising.config.num_train_timesteps)
    calls = schedule(pair, on, steps=pair.steps, guidance=0.0)
    return torch.tensor([float(call.timestep) for call in calls]).round().long()


def _error(
    tuned: Tuned,
    noising: DDPMScheduler,
    times: torch.Tensor,
    x0: torch.Tensor,
    known: Conditions,
    prompts: Sequence[str],
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the denoiser's prediction on x0 noised to random timesteps, in its own parametrisation."""
    t = times[torch.randint(len(times), (len(x0),), generator=generator)].to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    aims = {"epsilon": lambda: noise, "v_prediction": lambda: noising.get_velocity(x0, noise, t), "sample": lambda: x0}
    made = predict(tuned.network, noising.add_noise(x0, noise, t), t, known.rows(prompts))
    return torch.nn.functional.mse_loss(made, aims[noising.config.prediction_type]())
