"""Guidance is split, and the denoiser's forward is replaced and restored."""

import pytest
import torch

import dtviz
from dtviz.core.denoisers import DenoiserRouter, split_guidance
from dtviz.core.handover import DenoiserCall

C, U = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def mixed(w: float) -> torch.Tensor:
    return U + w * (C - U)


@pytest.mark.parametrize("w", [1.1, 3.0, 7.5, 20.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("calls", [[torch.cat([U, C])], [torch.cat([C, U])], [C, U], [U, C]])
def test_guidance_is_split_in_any_order_and_sign(w, sign, calls):
    conditional, unconditional = split_guidance(calls, sign * mixed(w))
    assert torch.equal(conditional, sign * C)
    assert torch.equal(unconditional, sign * U)


def test_special_cases_of_splitting():
    rescaled = mixed(5.0) * torch.tensor([0.4, 0.7, 1.3])[:, None, None, None]
    assert torch.equal(split_guidance([torch.cat([U, C])], rescaled)[0], C)
    learned_variance = torch.cat([torch.cat([U, C]), torch.zeros(6, 4, 8, 8)], dim=1)
    assert torch.equal(split_guidance([learned_variance], mixed(4.0))[1], U)
    conditional, unconditional = split_guidance([C], C)
    assert torch.equal(conditional, C) and unconditional is None
    assert torch.equal(*split_guidance([torch.cat([C, C])], C))
    variance = torch.cat([mixed(7.0)[:, :3], C[:, 3:]], dim=1)  # DeepFloyd IF: a learned variance behind it
    samples = [*C[:, :, None], *U[:, :, None]]  # Z-Image
    for calls, guided in (([torch.cat([U, C])], variance), ([samples], mixed(6.0))):
        conditional, unconditional = split_guidance(calls, guided)
        assert torch.equal(conditional, C) and torch.equal(unconditional, U)
    spoilt = C.clone()
    spoilt[0] = torch.nan
    assert torch.equal(split_guidance([torch.cat([U, spoilt])], U + 5 * (spoilt - U))[1], U)


def test_other_kinds_of_guidance_are_refused():
    several = "one or two denoiser outputs per step"
    for calls, guided, words in (
        ([torch.cat([U, C, C])], mixed(2.0), several),
        ([], C, several),
        ([torch.zeros(3, 2, 8, 8)], C, several),
        ([C[:2]], C, several),
        ([torch.cat([U, C])], torch.randn(C.shape, generator=torch.Generator().manual_seed(1)), "not explained"),
        ([[U[0], C[:1]]], C, "samples of several shapes"),
    ):
        with pytest.raises(NotImplementedError, match=words):
            split_guidance(calls, guided)


def test_a_forward_set_on_the_instance_is_called_and_restored(pair):
    """Offloading hooks and compiled modules keep their forward in the instance."""
    calls, plain = [], pair.base.forward
    pair.base.forward = lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs)
    own = pair.base.forward
    dtviz.generate(pair, "a dog", method="base", base_steps=2, seeds=[0])
    assert pair.base.forward is own
    assert len(calls) == 2


def test_guidance_of_a_list_of_samples_is_refused(pair):
    """Z-Image passes one tensor for each sample."""
    call = DenoiserCall("base", None, None)
    router = DenoiserRouter(pair.pipeline, pair.base, pair.distilled, lambda: call, is_doubled=lambda x: len(x) == 2)
    with pytest.raises(NotImplementedError, match="passes a list of samples.*base_guidance=None"), router.active():
        pair.base([torch.zeros(4, 8, 8)] * 2, 0, torch.zeros(2, 4, 16))
