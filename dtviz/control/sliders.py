"""Concept Sliders: a LoRA whose scale moves an attribute up and down, trained from texts alone (Gandikota et al. 2024).

    smile = dtviz.control.train_slider(
        pair, name="smile", target=["man", "baby"], positive="grinning face", negative="angry face", eta=1.0
    )
    smile.save("smile.safetensors")

Trained on the base or on a student, and tried on the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch

from ..controls import Control
from ..networks import embeds_guidance
from ..pairs import Pair
from ..sampling.plan import Call
from .conditions import Conditions, conditions, predict, schedule
from .optimise import check_numbers, optimise, settled
from .tuned import ATTENTION, Tuned, lora, origin, trained_network

GUIDANCE = 3.0  # of the base's rollouts, as published


def train_slider(
    pair: Pair,
    *,
    name: str,
    target: str | Sequence[str],
    positive: str | Sequence[str],
    negative: str | Sequence[str],
    neutral: str | Sequence[str] | None = None,
    on: str = "base",
    eta: float = 4.0,
    rank: int = 4,
    alpha: float = 1.0,
    modules: Sequence[str] = ATTENTION,
    iterations: int = 1000,
    batch_size: int = 1,
    lr: float = 2e-4,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    licence: str = "",
    state: str | Path | None = None,
    progress: bool = True,
) -> Control:
    """Train a slider on one of the pair's networks.

    Each iteration rolls the network, with the slider on at scale s = 1 or -1 in turn, down to a random one of its steps, and
    brings its prediction for `target` nearer to what the plain network says (equation 7 of the Concept Sliders paper, squared
    error, s times the slider on the left):

        e(x_t, target) -> e(x_t, neutral) + s eta (e(x_t, positive) - e(x_t, negative))

    The formula is the same for noise, v and velocity predictions: all are linear in the noise at a given x_t, and the weights
    add up to one.

    Args:
        pair: base and student; UNets, in float32 or bfloat16.
        name: of the control.
        target: what is to be moved, one prompt or several, one of them for each sample.
        positive, negative: the ends of the scale; one for all targets, or one for each.
        neutral: what `target` is without the slider; None: the target itself.
        on: "base" or "distilled", whose weights, sampler and timesteps are used.
        eta: strength of the guidance.
        rank, alpha, modules: of the LoRA; `modules` are name endings, see `tuned.matching`.
        iterations, batch_size, lr: of AdamW; the published defaults are for SDXL.
        steps: of the rollouts' schedule; None takes the pair's.
        guidance: of the rollouts; None takes 3 on the base, as published, and the student's own on the student.
        seed: two trainings of one seed are equal.
        licence: kept with the control.
        state: where the run is kept and taken up again when it was killed, see `optimise`.
        progress: show a bar.

    Returns:
        The `Control`, of kind "slider". Its facts tell all of the above.

    Raises:
        ValueError: an argument is out of range; the message names it.
        NotImplementedError: the denoiser is not a UNet.
    """
    targets = _texts("target", target, None)
    texts = {
        "target": targets,
        "positive": _texts("positive", positive, len(targets)),
        "negative": _texts("negative", negative, len(targets)),
        "neutral": targets if neutral is None else _texts("neutral", neutral, len(targets)),
    }
    if texts["positive"] == texts["negative"]:
        raise ValueError(f"positive={positive!r} and negative are the same: there is nothing between them")
    check_numbers(eta=eta, rank=rank, alpha=alpha, iterations=iterations, batch_size=batch_size, lr=lr)
    usual = pair.base_steps if on == "base" else pair.steps
    steps = usual if steps is None else steps
    if guidance is None:
        guidance = GUIDANCE if on == "base" else pair.guidance
    check_numbers(steps=steps)
    if not guidance >= 0:
        raise ValueError(f"guidance={guidance} must be at least 0; 0 and 1 are the conditional model")
    trained_network(pair, on, modules)
    words = sorted({text for those in texts.values() for text in those})
    known = conditions(pair, words, role=on, guidance=guidance)
    settings = {
        **texts,
        "trained_on": origin(pair, on),
        "eta": eta,
        "rank": rank,
        "alpha": alpha,
        "modules": list(modules),
        "batch_size": batch_size,
        "steps": steps,
        "guidance": guidance,
    }
    with lora(pair, on=on, modules=modules, rank=rank, alpha=alpha, seed=seed) as tuned:

        def loss(iteration: int, generator: torch.Generator) -> torch.Tensor:
            sign = 1 if iteration % 2 == 0 else -1
            rows = torch.randint(len(targets), (batch_size,), generator=generator).tolist()
            wanted = {part: [those[row] for row in rows] for part, those in texts.items()}
            calls = schedule(pair, on, steps=steps, guidance=guidance)
            step = int(torch.randint(len(calls), (), generator=generator))
            tuned.scale(sign)
            x_t = rollout(tuned, calls, step, known, wanted["target"], generator)
            x_t = calls[step].scheduler.scale_model_input(x_t, calls[step].timestep)
            aim = plain(tuned, x_t, calls[step].timestep, known, wanted, sign * eta)
            tuned.scale(sign)
            made = predict(tuned.network, x_t, calls[step].timestep, known.rows(wanted["target"]))
            return torch.nn.functional.mse_loss(made, aim)

        numbers = {"iterations": iterations, "lr": lr, "seed": seed}
        losses = optimise(
            tuned.parameters, loss, **numbers, settings=settings, state=state, progress=progress, title=name
        )
        facts = settings | numbers | {"prompts": list(targets), "towards": texts["positive"][0], "licence": licence}
        return Control(name, "slider", tuned.tensors(), facts | {"loss": settled(losses)})


@torch.no_grad()
def rollout(
    tuned: Tuned,
    calls: Sequence[Call],
    stop: int,
    known: Conditions,
    prompts: Sequence[str],
    generator: torch.Generator,
) -> torch.Tensor:
    """x_t before call number `stop`, from the pure noise at which the schedule begins, by the network as it is.

    Guidance evaluates both rows in one call.
    """
    n, device = len(prompts), tuned.network.device
    x_t = torch.randn(n, *known.shape, generator=generator).to(device) * calls[0].scheduler.init_noise_sigma
    plainly, both = known.rows(prompts), known.rows([""] * n + list(prompts))
    for call in calls[:stop]:
        x = call.scheduler.scale_model_input(x_t, call.timestep)
        if call.scale > 1 and not embeds_guidance(tuned.network):
            unconditional, conditional = predict(tuned.network, torch.cat([x, x]), call.timestep, both).chunk(2)
            output = unconditional + call.scale * (conditional - unconditional)
        else:
            output = predict(tuned.network, x, call.timestep, plainly)
        x_t = _stepped(call, output, x_t, generator)
    return x_t


def _stepped(call: Call, output: torch.Tensor, x_t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The scheduler's step; its noise is the iteration's where it makes any."""
    noisy = "generator" in inspect.signature(call.scheduler.step).parameters
    options = {"generator": generator} if noisy else {}
    return call.scheduler.step(output, call.timestep, x_t, return_dict=False, **options)[0]


@torch.no_grad()
def plain(tuned: Tuned, x_t: torch.Tensor, timestep, known: Conditions, wanted: dict, strength: float) -> torch.Tensor:
    """What the slider is trained towards, from the plain network, in one call."""
    parts = ("neutral", "positive", "negative")
    tuned.scale(0)
    rows = known.rows([text for part in parts for text in wanted[part]])
    neutral, positive, negative = predict(tuned.network, torch.cat([x_t] * 3), timestep, rows).chunk(3)
    return neutral + strength * (positive - negative)


def _texts(name: str, given: str | Sequence[str], count: int | None) -> list[str]:
    """One text for each target."""
    texts = [given] if isinstance(given, str) else list(given)
    if count is not None and len(texts) == 1:
        texts *= count
    if not texts or (count is not None and len(texts) != count):
        raise ValueError(f"{name}={given!r} must be one text, or one for each target" + (f", {count}" if count else ""))
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}={given!r} must be texts that are not empty")
    return texts
