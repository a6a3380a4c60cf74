"""Send each denoiser call of a pipeline to the base, the distilled model or a LoRA, with its own guidance scale.

router = DenoiserRouter(pipe, base, distilled, next_call=lambda: scheduler.call, is_doubled=lambda x: len(x) == 2 * batch)
with router.active():
    pipe(...)

The `forward` of the base is replaced on the instance, so that all that the pipeline passes reaches the network that denoises.
"""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from .adapters import AdapterSwitch, replaced
from .pair import check_compatible

GUIDANCE_INPUTS = ("timestep_cond", "guidance")  # arguments that `guidance_input` may return
# Arguments that may hold a scale of all LoRAs
LORA_SCALES = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
# Pipelines whose doubled batch begins with the prompt. In all others it is second.
PROMPT_FIRST = ("LuminaPipeline", "LuminaText2ImgPipeline", "AceStepPipeline")


def denoiser_of(target: Any) -> torch.nn.Module:
    """Return the denoiser of a pair (its base) or pipeline, or the target itself if it is a module."""
    for module in (target, *(getattr(target, name, None) for name in ("base", "unet", "transformer"))):
        if isinstance(module, torch.nn.Module):
            return module
    kind = type(target).__name__
    raise ValueError(f"target is a {kind} without a denoiser: give a dtviz.Pair, a diffusers pipeline or a denoiser")


def network(base: torch.nn.Module, distilled: torch.nn.Module | str, role: str) -> torch.nn.Module:
    """Return the network of a role, "base" or "distilled". It is the base for both if `distilled` names an adapter."""
    return base if role == "base" or isinstance(distilled, str) else distilled


def embeds_guidance(denoiser: torch.nn.Module) -> bool:
    """Tell whether the denoiser takes its guidance scale as an input (LCM, FLUX.1-dev, SANA-Sprint)."""
    config = denoiser.config
    return config.get("time_cond_proj_dim") is not None or bool(config.get("guidance_embeds"))


def guidance_input(pipe: Any, denoiser: torch.nn.Module, scale: float, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the guidance argument of such a denoiser, one value per sample of `like`, as its own pipeline makes it."""
    if (width := denoiser.config.get("time_cond_proj_dim")) is not None:  # Luo et al. 2023: w = scale - 1
        strength = torch.full((len(like),), scale - 1.0)
        embedding = pipe.get_guidance_scale_embedding(strength, embedding_dim=width)
        return {"timestep_cond": embedding.to(like)}
    scale *= denoiser.config.get("guidance_embeds_scale", 1.0)
    return {"guidance": torch.full((len(like),), scale, device=like.device, dtype=torch.float32)}


@dataclass
class DenoiserRouter:
    """Decide for every denoiser call which network answers it.

    Attributes:
        pipe: the pipeline. Its `transformer_2`, the second denoiser of Wan 2.2, is routed as well.
        base, distilled: the denoiser that the pipeline calls, and the other one or the name of an adapter on the base.
        next_call: returns the coming call: any object with `role` and `guidance`. Guidance None leaves it to the pipeline.
        is_doubled: takes the input of a call and tells whether the pipeline doubled its batch for guidance.
        formula: roles whose guidance is u + scale (c - u) for every scale. For others 0 and 1 mean the conditional model.
        fuse: see `AdapterSwitch`. False once a network was left to peft.
        evaluations: denoiser evaluations per sample, by role. Those left to the pipeline are in `left`, per batch.
        again: evaluates the inputs of the last call once more. Takes a call, returns the denoiser's output.
    """

    pipe: Any
    base: torch.nn.Module
    distilled: torch.nn.Module | str
    next_call: Callable[[], Any] | None = None
    is_doubled: Callable[[torch.Tensor], bool] | None = None
    formula: tuple[str, ...] = ()
    fuse: bool = True
    evaluations: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    again: Callable[[Any], torch.Tensor] | None = None
    _inputs: dict[Any, dict[str, torch.Tensor]] = field(default_factory=dict)  # guidance inputs that were made

    def needs_both(self, call: Any) -> bool:
        """Tell whether this call's guidance needs the unconditional prediction, which the pipeline has to prepare."""
        if call.guidance is None or embeds_guidance(network(self.base, self.distilled, call.role)):
            return False
        return call.guidance > 1 or (call.role in self.formula and call.guidance < 1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Route the calls of the pipeline's denoisers inside the block. Everything is restored on every exit.

        A pipeline that doubles its batch receives the guided output in both halves. Its own u + g (c - u) leaves that as it is.
        """
        second = getattr(self.pipe, "transformer_2", None)
        with ExitStack() as stack:
            stack.callback(setattr, self, "again", None)
            bases = [self.base, second] if isinstance(second, torch.nn.Module) else [self.base]
            forwards = {base: base.forward for base in bases}
            for base in bases:
                check_compatible(base, self.distilled, name="distilled")
                use = None
                if isinstance(self.distilled, str):
                    switch = AdapterSwitch(base, self.distilled, fuse=self.fuse)
                    use, self.fuse = stack.enter_context(switch.active(self.pipe)), switch.fuse
                stack.enter_context(replaced(vars(base), forward=self._routed(base, forwards, use)))
            yield

    def _routed(self, base: torch.nn.Module, forwards: dict[Any, Callable], use: Callable | None) -> Callable:
        plain = getattr(base, "_orig_mod", base)  # of a compiled module
        first = next(iter(inspect.signature(plain.forward).parameters))  # "sample", or "hidden_states" of transformers

        def answer(call: Any, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]):
            target = network(base, self.distilled, call.role)
            if target is not base:  # the pipeline made them for the base
                kwargs = {name: value for name, value in kwargs.items() if name not in GUIDANCE_INPUTS}
            if use is not None:
                use(call.role, next((kwargs[name].get("scale", 1.0) for name in LORA_SCALES if kwargs.get(name)), 1.0))
            return self._evaluate(target, forwards.get(target, target), call, sample, args, kwargs)

        @functools.wraps(forwards[base])
        def routed_forward(*args, **kwargs):
            sample, args = (args[0], args[1:]) if args else (kwargs.pop(first), ())
            self.again = lambda call: answer(call, sample, args, kwargs)[0]
            return answer(self.next_call(), sample, args, kwargs)

        return routed_forward

    def _evaluate(self, target, denoiser, call: Any, sample: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        n, role, scale, kind = len(sample), call.role, call.guidance, type(self.pipe).__name__
        embedded, both = embeds_guidance(target), self.needs_both(call)
        if scale is None and not embedded:  # left to the pipeline
            self.left[role] += n
            return denoiser(sample, *args, **kwargs)
        doubled = self.is_doubled(sample)
        if both and not doubled:
            problem = f"{role} guidance {scale:g} needs the unconditional prediction, which this call of {kind} lacks"
            raise ValueError(f"{problem}: pass it a guidance_scale above 1, or give {role} guidance 0")
        if doubled and not isinstance(sample, torch.Tensor):
            cure = "pass it guidance_scale 0, or give dtviz.hybrid base_guidance=None and guidance=None"
            raise NotImplementedError(f"{kind} passes a list of samples, whose guidance only it can apply: {cure}")
        if embedded:
            scale = self.pipe.guidance_scale if scale is None else scale
            rows = sample[: n // 2] if doubled else sample
            key = (target, scale, len(rows), rows.dtype)
            if key not in self._inputs:  # a copy to the device makes the host wait
                self._inputs[key] = guidance_input(self.pipe, target, scale, rows)
            kwargs = kwargs | self._inputs[key]
        twice, prompt_first = both and scale != 0, kind in PROMPT_FIRST
        if doubled and not twice:  # the half of the prompt, or for scale 0 the other one
            half = slice(n // 2) if both != prompt_first else slice(n // 2, n)
            sample, args, kwargs = _rows((sample, args, kwargs), n, half)
        result = denoiser(sample, *args, **kwargs)
        output = result[0]
        if twice:
            unconditional, conditional = output.chunk(2)[:: -1 if prompt_first else 1]
            output = unconditional + scale * (conditional - unconditional)
        self.evaluations[role] += 2 if twice else 1
        output = torch.cat([output, output]) if doubled else output
        return (output,) if isinstance(result, tuple) else type(result)(sample=output)


def _rows(tree: Any, n: int, rows: slice) -> Any:
    """Return these rows of every tensor whose first dimension is the doubled batch."""
    return tree_map_only(torch.Tensor, lambda x: x[rows] if x.ndim and len(x) == n else x, tree)


def split_guidance(outputs: list[torch.Tensor], guided: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the conditional and the unconditional denoiser output behind a guided one.

    Pipelines run classifier-free guidance in one doubled batch or in two calls, in either order. Some turn the sign or rescale
    the result. All of them make g = s (u + w (c - u)) with w > 1 per sample, so c has the larger share in g.

    Args:
        outputs: the denoiser's outputs since the last step: (n, ...) or (2n, ...), any number of calls.
        guided: (n, ...) what the pipeline passed to its scheduler.

    Returns:
        Both in the shape of `guided`. The unconditional output is None if the pipeline computed none.
    """
    n = len(guided)
    if any(len({x.shape for x in output}) != 1 for output in outputs):
        raise NotImplementedError("guidance=True: the denoiser returns samples of several shapes, capture it without")
    # Z-Image returns a list of samples
    outputs = [output if isinstance(output, torch.Tensor) else torch.stack(list(output)) for output in outputs]
    parts = [part for output in outputs for part in (output.split(n) if len(output) % n == 0 else [output])]
    parts = [part[:, : guided.shape[1]] for part in parts]  # without a learned variance or a reference image's tokens
    if not 1 <= len(parts) <= 2 or any(part.numel() != guided.numel() for part in parts):
        shapes = f"{tuple(guided.shape)}, here are {[tuple(output.shape) for output in outputs]}: capture it without"
        raise NotImplementedError(f"guidance=True needs one or two denoiser outputs per step of shape {shapes}")
    if len(parts) == 1:
        return guided, None
    parts = [part.reshape(guided.shape) for part in parts]
    shares, unexplained = _shares(parts, guided)
    if unexplained > 0.5 and guided.shape[1] % 2 == 0:  # DeepFloyd IF passes a learned variance behind the guided noise
        half = guided.shape[1] // 2
        shares, unexplained = _shares([part[:, :half] for part in parts], guided[:, :half])
    if unexplained > 0.5:
        share = f"{unexplained:.0%} of the scheduler's input is not explained by the denoiser's two outputs"
        raise NotImplementedError(f"guidance=True: {share}: this pipeline guides another way, capture it without")
    if sum(shares) < 0:
        parts, shares = [-part for part in parts], [-share for share in shares]
    return (parts[0], parts[1]) if shares[0] > shares[1] else (parts[1], parts[0])


def _shares(parts: list[torch.Tensor], guided: torch.Tensor) -> tuple[list[float], float]:
    """Return the least-squares shares of the two parts in the guided output, summed over samples without nan, and the rest."""
    wide = torch.float32 if guided.device.type == "mps" else torch.float64
    a = torch.stack([part.flatten(1) for part in parts], dim=-1).to(wide)
    g = guided.flatten(1).to(wide).unsqueeze(-1)
    gram = a.mT @ a
    # Equal outputs get equal shares with a small ridge, and their order does not matter.
    ridge = 1e4 * torch.finfo(wide).eps * gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] + 1e-30
    shares = torch.linalg.solve_ex(gram + ridge * torch.eye(2, device=g.device, dtype=wide), a.mT @ g).result
    rest = (g - a @ shares).square().nansum().sqrt() / g.square().nansum().sqrt().clamp(min=1e-30)
    *shares, rest = torch.cat([shares.nansum(dim=(0, 2)), rest[None]]).tolist()
    return shares, rest
