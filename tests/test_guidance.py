import pytest
import torch

from dtviz.guidance import split

C, U = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def mixed(w: float) -> torch.Tensor:
    return U + w * (C - U)


@pytest.mark.parametrize("w", [1.1, 3.0, 7.5, 20.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("calls", [[torch.cat([U, C])], [torch.cat([C, U])], [C, U], [U, C]])
def test_told_apart_in_any_order_and_sign(w, sign, calls):
    conditional, unconditional = split(calls, sign * mixed(w))
    assert torch.equal(conditional, sign * C)
    assert torch.equal(unconditional, sign * U)


def test_told_apart_when_each_sample_is_rescaled():
    guided = mixed(5.0) * torch.tensor([0.4, 0.7, 1.3])[:, None, None, None]
    assert torch.equal(split([torch.cat([U, C])], guided)[0], C)


def test_learned_variance_and_reference_tokens_are_left_out():
    doubled = torch.cat([torch.cat([U, C]), torch.zeros(6, 4, 8, 8)], dim=1)
    assert torch.equal(split([doubled], mixed(4.0))[1], U)


def test_no_guidance_has_no_unconditional():
    conditional, unconditional = split([C], C)
    assert torch.equal(conditional, C)
    assert unconditional is None


def test_equal_outputs_are_not_an_error():
    conditional, unconditional = split([torch.cat([C, C])], C)
    assert torch.equal(conditional, unconditional)


@pytest.mark.parametrize(
    ("calls", "guided"),
    [([torch.cat([U, C, C])], mixed(2.0)), ([], C), ([torch.zeros(3, 2, 8, 8)], C), ([C[:2]], C)],
)
def test_other_numbers_of_outputs_are_refused(calls, guided):
    with pytest.raises(NotImplementedError, match="one or two denoiser outputs a step"):
        split(calls, guided)


def test_what_is_no_mix_is_refused():
    with pytest.raises(NotImplementedError, match="unexplained"):
        split([torch.cat([U, C])], torch.randn(C.shape))
