"""A training loop that can be killed at any moment and goes on where it was, to the same bits on a CPU.

    losses = optimise(parameters, loss, iterations=1000, lr=2e-4, seed=0, settings={"rank": 4}, state="smile.state")

Every iteration draws from a generator of its own, so that nothing but the parameters and AdamW's moments has to be kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from ..outside import reading
from ..store import digest, write_whole

HEADER, SUM = "dtviz", "sha256"  # of the state file's metadata: the settings as JSON, and what its bytes have to give
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, as torch names them


def optimise(
    parameters: Mapping[str, torch.nn.Parameter],
    loss: Callable[[int, torch.Generator], torch.Tensor],
    *,
    iterations: int,
    lr: float,
    seed: int,
    settings: Mapping[str, Any],
    weight_decay: float = 0.01,
    state: str | Path | None = None,
    every: int = 50,
    progress: bool = True,
    title: str = "train",
) -> list[float]:
    """Minimise `loss` with AdamW, in place.

    Args:
        parameters: what is trained, by name.
        loss: of the iteration's number, from 0, and a generator on the CPU for its random numbers; a scalar with gradient.
        iterations: how many updates, at least 1.
        lr, weight_decay: AdamW's.
        seed: of all random numbers; two runs of one seed are equal.
        settings: what makes this training another one, JSON-compatible; a state of other settings is refused.
        state: where the run is kept, one safetensors file, and taken up again; None keeps nothing.
        every: iterations from one saving to the next.
        progress: show a bar; `title` stands before it.

    Returns:
        The loss of every iteration, also of those made before an interruption.

    Raises:
        ValueError: an argument is out of range, or the state is not one of this training.
        FloatingPointError: the loss is not finite.
    """
    check_numbers(iterations=iterations, lr=lr, every=every)
    facts = {"settings": json.loads(json.dumps(settings)), "seed": seed, "lr": lr, "weight_decay": weight_decay}
    optimiser = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=weight_decay)
    path = None if state is None else Path(state)
    losses = [] if path is None or not path.exists() else _resume(path, facts, parameters, optimiser)
    done = len(losses)
    if done > iterations:
        raise ValueError(f"state={str(state)!r} has made {done} iterations already, more than iterations={iterations}")
    bar = tqdm(range(done, iterations), initial=done, total=iterations, desc=title, disable=not progress)
    for iteration in bar:
        value = loss(iteration, generator(seed, iteration))
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"loss {losses[-1]} in iteration {iteration}: give a smaller lr than {lr:g}")
        if path is not None and ((iteration + 1) % every == 0 or iteration + 1 == iterations):
            _keep(path, facts, parameters, optimiser, losses)
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    return losses


def settled(losses: list[float]) -> float:
    """Where a training's loss ended: the mean of its last tenth.

    >>> settled([9.0] * 18 + [1.0, 3.0])
    2.0
    """
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def check_numbers(**values: float) -> None:
    """ValueError: one of them is not a finite number above 0; an iteration or a batch not a whole one of at least 1.

    >>> check_numbers(lr=1e-4, iterations=10)
    """
    for name, value in values.items():
        whole = name not in ("lr", "eta", "alpha")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < 1e9:
            raise ValueError(f"{name}={value!r} must be {'an integer of at least 1' if whole else 'a number above 0'}")


def generator(seed: int, iteration: int) -> torch.Generator:
    """The random numbers of one iteration, the same in whatever run it is made."""
    mixed = np.random.SeedSequence([seed, iteration]).generate_state(1)  # torch reads 32 bits of a seed, no more
    return torch.Generator("cpu").manual_seed(int(mixed[0]))


def _keep(
    path: Path,
    facts: Mapping[str, Any],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    losses: list[float],
) -> None:
    """The whole state in one file, whole or not at all."""
    told, tensors = json.dumps(facts, sort_keys=True), {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in parameters.items():
        tensors[f"value.{name}"] = parameter.detach().cpu().contiguous()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment].cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors, metadata={HEADER: told, SUM: _sum(told, tensors)}))


def _sum(told: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of all that is resumed: one flipped bit would train another control, silently."""
    return digest(told, {name: tensor.flatten().view(torch.uint8).numpy() for name, tensor in tensors.items()})


@torch.no_grad()
def _resume(
    path: Path,
    facts: Mapping[str, Any],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> list[float]:
    """Read the state into parameters and optimiser; the losses so far."""
    with reading(f"state={str(path)!r}"):
        with safe_open(path, framework="pt") as file:
            head, saved = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        if head[SUM] != _sum(head[HEADER], saved):
            raise ValueError("it does not fit its sum")
        told = json.loads(head[HEADER])
    if told != facts:
        other = sorted(key for key in facts["settings"] if told["settings"].get(key) != facts["settings"][key])
        other += [key for key in ("seed", "lr", "weight_decay") if told[key] != facts[key]]
        raise ValueError(
            f"state={str(path)!r} is of a training with other settings ({', '.join(other)}); remove it, or name another"
        )
    losses = saved["losses"].tolist()
    for name, parameter in parameters.items():
        parameter.copy_(saved[f"value.{name}"])
        moments = {moment: saved[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        optimiser.state[parameter] = {"step": torch.tensor(float(len(losses))), **moments}
    return losses
