"""Train controls: sliders from texts, styles (Custom Diffusion) and subjects (DreamBooth) from a few images.

smile = dtviz.controls.train_slider(pair, name="smile", target=["man", "baby"], positive="grinning face", negative="angry face")
style = dtviz.controls.train_customisation(pair, images, name="line art", prompts=["dog face", "house"])
dog = dtviz.controls.train_customisation(pair, photos, name="rex", prompts="sks dog", class_prompt="dog", modules=ATTENTION)
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F
from torch.utils._pytree import tree_map, tree_map_only
from tqdm.auto import tqdm

from ..core.adapters import AdapterSwitch
from ..core.decode import encode
from ..core.denoisers import embeds_guidance, network
from ..core.generate import generate
from ..core.handover import DenoiserCall, denoising_calls
from ..core.pair import Pair, role_scheduler
from ..metrics.embedders import check_images
from .attach import ROLES, LayerHooks
from .control import DOWN, UP, Control

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # self- and cross-attention, as in diffusers' DreamBooth LoRA
CROSS_ATTENTION = ("attn2.to_k", "attn2.to_v")  # keys and values of the text, as in Custom Diffusion


def train_slider(
    pair: Pair, *, name: str, target: str | Sequence[str], positive: str | Sequence[str], negative: str | Sequence[str],
    on: str = "base", eta: float = 4.0, rank: int = 4, alpha: float = 1.0, modules: Sequence[str] = ATTENTION,
    iterations: int = 1000, batch_size: int = 1, lr: float = 2e-4, steps: int | None = None, seed: int = 0, licence: str = "",
    progress: bool = True,
) -> Control:  # fmt: skip
    """Train a Concept Slider: a LoRA whose scale moves an attribute up and down (Gandikota et al. 2024, equation 7).

    Each iteration samples x_t with the slider at s = 1 or s = -1, and minimises the squared error of, with it on and off,

        e(x_t, target)  ->  e(x_t, target) + s eta (e(x_t, positive) - e(x_t, negative))

    Args:
        pair: base and distilled model, UNets in float32 or bfloat16.
        target: prompts to be moved. Each sample takes one of them.
        positive, negative: ends of the scale, one for each target or for all.
        on: "base" or "distilled", whose weights, sampler and timesteps are used.
        eta: strength of the guidance.
        modules: name endings of the linear and convolution layers that get a LoRA.
        steps: of the sampler. None: the pair's.
    """
    targets = _texts("target", target)
    ends = {"positive": positive, "negative": negative}
    texts = {"target": targets} | {part: _texts(part, given, len(targets)) for part, given in ends.items()}
    if texts["positive"] == texts["negative"]:
        raise ValueError(f"positive={positive!r} and negative are the same: there is nothing between them")
    # 3 is the guidance of the rollouts on the base, as published
    own_steps, guidance = (pair.base_steps, 3.0) if on == "base" else (pair.steps, pair.guidance)
    steps = own_steps if steps is None else steps
    numbers = _numbers(rank, alpha, batch_size, iterations, lr, eta=eta, steps=steps)
    trainable_layers(pair, on, modules)
    conditions = Conditions(pair, sorted({text for part in texts.values() for text in part}))
    facts = _facts(pair, on, prompts=targets, modules=list(modules), seed=seed, licence=licence) | numbers
    facts |= texts | {"towards": texts["positive"][0], "guidance": guidance}
    with training(pair, on, modules, rank=rank, alpha=alpha, seed=seed) as (denoiser, hooks):

        def loss(iteration: int, generator: torch.Generator) -> torch.Tensor:
            sign = (1, -1)[iteration % 2]
            rows = torch.randint(len(targets), (batch_size,), generator=generator).tolist()
            chosen = {part: [those[row] for row in rows] for part, those in texts.items()}
            calls = sampler_calls(pair, on, steps=steps, guidance=guidance)  # anew: schedulers count their steps
            call = calls[int(torch.randint(len(calls), (), generator=generator))]
            hooks.scale = sign * alpha / rank
            x_t = rollout(denoiser, calls, call.index, conditions, chosen["target"], generator)
            x_t = call.scheduler.scale_model_input(x_t, call.timestep)
            hooks.scale = 0
            inputs = conditions.rows([*chosen["target"], *chosen["positive"], *chosen["negative"]])
            with torch.no_grad():
                plain, upper, lower = predict(denoiser, torch.cat([x_t] * 3), call.timestep, inputs).chunk(3)
            hooks.scale = sign * alpha / rank
            output = predict(denoiser, x_t, call.timestep, conditions.rows(chosen["target"]))
            return F.mse_loss(output, plain + sign * eta * (upper - lower))

        return optimise(hooks, loss, name=name, kind="slider", facts=facts, progress=progress)


def train_customisation(
    pair: Pair, images: torch.Tensor, *, name: str, prompts: str | Sequence[str], on: str = "base",
    class_prompt: str | None = None, prior_images: int = 100, prior_weight: float = 1.0, drop: float = 0.0, rank: int = 4,
    alpha: float = 4.0, modules: Sequence[str] = CROSS_ATTENTION, iterations: int = 500, batch_size: int = 2, lr: float = 1e-4,
    seed: int = 0, licence: str = "", progress: bool = True,
) -> Control:  # fmt: skip
    """Learn a style or subject as a LoRA of the layers that read the text (Custom Diffusion, Kumari et al. 2023).

    The loss is the squared error of the prediction on noised images, at the role's timesteps. With a rare word in the prompt, a
    `class_prompt` and modules=ATTENTION it is DreamBooth (Ruiz et al. 2023). Other arguments are as for `train_slider`.

    Args:
        images: (n, 3, height, width) in [0, 1], of the size that the pair generates.
        prompts: one for all images, or one for each.
        class_prompt: prompt of `prior_images` that the network generates first (prior preservation). None: no prior.
        drop: share of samples without prompt, for a style: guidance amplifies what depends on the prompt.
    """
    images = check_images(images)
    texts = _texts("prompts", prompts, len(images))
    numbers = _numbers(rank, alpha, batch_size, iterations, lr, prior_images=prior_images)
    if not prior_weight >= 0 or not 0 <= drop < 1:
        raise ValueError(f"prior_weight={prior_weight} must be at least 0, and drop={drop} at least 0 and below 1")
    trainable_layers(pair, on, modules)
    conditions = Conditions(pair, sorted({*texts, *([class_prompt] if class_prompt else [])}))
    latents, priors = encode(images, pair), None
    if latents.shape[1:] != conditions.shape:
        shapes = f"{tuple(latents.shape[1:])}, and this pair makes {conditions.shape}"
        raise ValueError(f"images of {tuple(images.shape[2:])} pixels give latents {shapes}: resize them")
    if class_prompt:  # by the untrained network
        priors = generate(pair, class_prompt, method=on, seeds=range(seed, seed + prior_images)).final.to(latents)
    facts = _facts(pair, on, prompts=list(dict.fromkeys(texts)), modules=list(modules), seed=seed, licence=licence)
    facts |= numbers | {"class_prompt": class_prompt, "prior_weight": prior_weight, "drop": drop}
    facts["images"] = {"number": len(images)}
    noising = DDPMScheduler.from_config(pair.base_scheduler.config)
    times = torch.arange(noising.config.num_train_timesteps)
    if on == "distilled":
        times = role_scheduler(pair, on, pair.steps, "cpu").timesteps.float().round().long()
    with training(pair, on, modules, rank=rank, alpha=alpha, seed=seed) as (denoiser, hooks):

        def error(x0: torch.Tensor, prompts: Sequence[str], generator: torch.Generator) -> torch.Tensor:
            t = times[torch.randint(len(times), (len(x0),), generator=generator)].to(x0.device)
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            goals = {"epsilon": noise, "v_prediction": noising.get_velocity(x0, noise, t), "sample": x0}
            output = predict(denoiser, noising.add_noise(x0, noise, t), t, conditions.rows(prompts))
            return F.mse_loss(output, goals[noising.config.prediction_type])

        def loss(_: int, generator: torch.Generator) -> torch.Tensor:
            rows = torch.randint(len(texts), (batch_size,), generator=generator)
            dropped = torch.rand(len(rows), generator=generator) < drop
            chosen = ["" if out else texts[row] for row, out in zip(rows.tolist(), dropped.tolist(), strict=True)]
            value = error(latents[rows], chosen, generator)
            if priors is None:
                return value
            rows = torch.randint(len(priors), (batch_size,), generator=generator)
            return value + prior_weight * error(priors[rows], [class_prompt] * len(rows), generator)

        kind = "subject" if class_prompt else "style"
        return optimise(hooks, loss, name=name, kind=kind, facts=facts, progress=progress)


def trainable_layers(pair: Pair, on: str, modules: Sequence[str]) -> dict[str, torch.nn.Module]:
    """Return the linear and convolution layers of a role's network whose names end in one of `modules`."""
    if on not in ROLES:
        raise ValueError(f"on={on!r} is not one of {', '.join(ROLES)}: whose weights the control is trained with")
    denoiser, layers, chosen = network(pair.base, pair.distilled, on), {}, {}
    if denoiser.dtype == torch.float16:
        raise ValueError(f"on={on!r}: float16 loses small gradients; load that network in bfloat16 or float32")
    if pair.denoiser_name != "unet" or embeds_guidance(denoiser):
        kind = f"{type(denoiser).__name__}, guidance input: {embeds_guidance(denoiser)}"
        raise NotImplementedError(f"on={on!r} ({kind}): only UNets without guidance input can be trained")
    for name, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and ".lora_" not in name:
            layers[name.removesuffix(".base_layer")] = module  # inside a LoRA that is loaded already
    for ending in modules:  # in this order: that of the LoRA's random numbers
        matches = {name: layer for name, layer in layers.items() if f".{name}".endswith(f".{ending}")}
        if not matches:
            ends = ", ".join(sorted({name.rpartition(".")[-1] for name in layers}))
            raise ValueError(f"modules: no name in {type(denoiser).__name__} ends in {ending!r}; some end in {ends}")
        chosen |= matches
    return chosen


@contextmanager
def training(pair: Pair, on: str, modules: Sequence[str], *, rank: int, alpha: float = 1.0, seed: int = 0) -> Iterator:
    """Attach a new trainable LoRA to a role's network. Yield the network and the hooks. Restore all on every exit."""
    layers, denoiser = trainable_layers(pair, on, modules), network(pair.base, pair.distilled, on)
    with ExitStack() as stack:
        for parameter in denoiser.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
        if isinstance(pair.distilled, str):  # the distillation LoRA
            stack.enter_context(AdapterSwitch(pair.base, pair.distilled, fuse=False).active())(on)
        denoiser.requires_grad_(False)
        hooks = LayerHooks(denoiser, Control("untrained", "lora", _new_factors(layers, rank, seed)), stack)
        hooks.tensors = {key: torch.nn.Parameter(t.to(denoiser.device)) for key, t in hooks.tensors.items()}
        hooks.scale = alpha / rank
        yield denoiser, hooks


def _new_factors(layers: Mapping[str, torch.nn.Module], rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Return the factors of a new LoRA: the first random, the second 0 (Hu et al. 2022)."""
    generator, factors = torch.Generator("cpu").manual_seed(seed), {}
    for name, layer in layers.items():
        out, *size = layer.weight.shape
        bound = 1 / math.sqrt(math.prod(size))  # torch's own for a linear layer of so many inputs
        factors[name + DOWN] = (2 * torch.rand(rank, *size, generator=generator) - 1) * bound
        factors[name + UP] = torch.zeros(out, rank, *(1 for _ in size[1:]))
    return factors


class Conditions:
    """The arguments that a pair's own pipeline gives its denoiser beside x_t, for each prompt. "" is the unconditional one."""

    @torch.no_grad()
    def __init__(self, pair: Pair, prompts: Sequence[str]) -> None:
        """Read them from one step of each prompt."""
        calls: list[tuple[tuple, dict[str, Any]]] = []
        # guidance above 1: the pipeline prepares both rows, the unconditional one first
        options = {"num_inference_steps": 1, "guidance_scale": 2.0, "output_type": "latent"} | pair.call_arguments
        self.arguments: dict[str, dict[str, Any]] = {}  # by prompt and name: tensors of one row, or dicts of them
        with pair.base.register_forward_pre_hook(lambda _, *inputs: calls.append(inputs), with_kwargs=True):
            for prompt in prompts:
                calls.clear()
                pair.pipeline(prompt=prompt, generator=torch.Generator("cpu"), **options)  # not the global generator
                inputs = {name: value for name, value in calls[0][1].items() if name != "return_dict"}
                for text, row in (("", slice(0, 1)), (prompt, slice(1, 2))):
                    self.arguments[text] = tree_map_only(torch.Tensor, lambda leaf, row=row: leaf[row].clone(), inputs)
        self.shape = tuple(calls[0][0][0].shape[1:])  # of the latents

    def rows(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of a batch, one row per prompt."""
        trees = [self.arguments[prompt] for prompt in prompts]
        return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], torch.Tensor) else leaves[0], *trees)


def predict(denoiser: torch.nn.Module, x_t: torch.Tensor, timestep: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Return the denoiser's output, float32, for x_t as its scheduler scales it."""
    return denoiser(x_t.to(denoiser.dtype), timestep, **arguments, return_dict=False)[0].float()


def _facts(pair: Pair, on: str, **settings: Any) -> dict[str, Any]:
    fingerprint = pair.base_fingerprint if on == "base" else pair.fingerprint
    return settings | {"trained_on": {"pair": pair.name, "role": on, "fingerprint": fingerprint}}


def sampler_calls(pair: Pair, role: str, *, steps: int, guidance: float) -> list[DenoiserCall]:
    """Return the calls of a role's own sampler, on a fresh scheduler."""
    settings = {"steps": steps, "base_steps": steps, "k": None, "handover": None, "guidance": {role: guidance}}
    return denoising_calls(pair, method=role, device=network(pair.base, pair.distilled, role).device, **settings)


@torch.no_grad()
def rollout(denoiser, calls: list[DenoiserCall], stop: int, conditions: Conditions, prompts: Sequence[str], generator):
    """Sample x_t before call number `stop`, from pure noise. Guidance evaluates both rows in one call."""
    noise = torch.randn(len(prompts), *conditions.shape, generator=generator)
    x_t = noise.to(denoiser.device) * calls[0].scheduler.init_noise_sigma
    for call in calls[:stop]:
        x = call.scheduler.scale_model_input(x_t, call.timestep)
        if call.guidance > 1:
            both = conditions.rows([*[""] * len(prompts), *prompts])
            u, c = predict(denoiser, torch.cat([x, x]), call.timestep, both).chunk(2)
            output = u + call.guidance * (c - u)
        else:
            output = predict(denoiser, x, call.timestep, conditions.rows(prompts))
        noise = {"generator": generator} if "generator" in inspect.signature(call.scheduler.step).parameters else {}
        x_t = call.scheduler.step(output, call.timestep, x_t, return_dict=False, **noise)[0]
    return x_t


def optimise(hooks: LayerHooks, loss: Callable, *, name: str, kind: str, facts: dict, progress: bool = True) -> Control:
    """Minimise `loss(iteration, generator)` with AdamW. The loss in the control's facts is the mean of the last tenth."""
    lr, losses = facts["lr"], []
    optimiser = torch.optim.AdamW(hooks.tensors.values(), lr=lr)
    bar = tqdm(range(facts["iterations"]), desc=name, disable=not progress)
    for iteration in bar:
        value = loss(iteration, iteration_generator(facts["seed"], iteration))
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"loss {losses[-1]} in iteration {iteration}: give a smaller lr than {lr:g}")
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    strength, last = facts["alpha"] / facts["rank"], losses[-max(1, len(losses) // 10) :]
    tensors = {key: (strength if key.endswith(UP) else 1) * t.detach().cpu() for key, t in hooks.tensors.items()}
    return Control(name, kind, tensors, facts | {"loss": sum(last) / len(last)})


def iteration_generator(seed: int, iteration: int) -> torch.Generator:
    """Return the generator of an iteration, the same in every run."""
    mixed = np.random.SeedSequence([seed, iteration]).generate_state(1)  # torch reads 32 bits of a seed
    return torch.Generator("cpu").manual_seed(int(mixed[0]))


def _numbers(rank: int, alpha: float, batch_size: int, iterations: int, lr: float, **others: float) -> dict[str, float]:
    """Return numbers by name. Refuse one that is not finite and above 0. All but lr, eta and alpha must be integers."""
    values = {"rank": rank, "alpha": alpha, "batch_size": batch_size, "iterations": iterations, "lr": lr} | others
    for name, value in values.items():
        whole = name not in ("lr", "eta", "alpha")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < 1e9:
            raise ValueError(f"{name}={value!r} must be {'an integer of at least 1' if whole else 'a number above 0'}")
    return values


def _texts(name: str, given: str | Sequence[str], count: int = 0) -> list[str]:
    """Return `count` texts, of which one may stand for all, or without `count` as many as there are."""
    texts = [given] if isinstance(given, str) else list(given)
    texts = texts * count if count and len(texts) == 1 else texts
    if not texts or len(texts) != (count or len(texts)) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError(f"{name}={given!r} must be texts that are not empty" + f", one or {count}" * bool(count))
    return texts
