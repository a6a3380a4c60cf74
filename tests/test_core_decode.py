"""Decoded latents are the pipelines' own images."""

import copy
from types import SimpleNamespace

import diffusers
import pytest
import torch

import dtviz
from dtviz.core.decode import Preview, decode_latents, encode

from .tiny import PIPELINES


def test_shapes_and_range(pair):
    trace = dtviz.generate(pair, "a dog", seeds=range(3), x_t=True)
    images = dtviz.decode(trace, pair)
    assert images.shape == (4, 3, 3, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert dtviz.decode(trace, pair, what="x_t").shape == images.shape
    torch.testing.assert_close(dtviz.decode(trace, pair, batch_size=1), images, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="guidance=True"):
        dtviz.decode(trace, pair, what="conditional")
    with pytest.raises(ValueError, match="'video' is not one of x0, final, x_t"):
        dtviz.decode(trace, pair, what="video")


def test_packed_latents_of_another_size_are_refused():
    pipe = PIPELINES["flux"]().pipe
    with pytest.raises(ValueError, match=r"size=None: 24 packed latents are not a square"):
        decode_latents(torch.zeros(1, 24, 16), pipe)
    with pytest.raises(ValueError, match=r"size=\(64, 64\) makes 256 packed latents, the trace has 24"):
        decode_latents(torch.zeros(1, 24, 16), pipe, size=(64, 64))


def test_latents_that_do_not_fit_are_refused(pipe):
    mono = diffusers.AutoencoderKL(out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    new = copy.deepcopy(pipe.vae)
    new.__class__ = type("AutoencoderNew", (type(new),), {})
    for host, options, *shape in (
        (SimpleNamespace(vae=pipe.vae), {}, 4, 3, 8, 8),  # AnimateDiff: a video with an image autoencoder
        (SimpleNamespace(vae=pipe.vae), {}, 8, 8, 8),  # Marigold: two targets
        (SimpleNamespace(vqvae=pipe.vae), {}, 3, 8, 8),  # latent super-resolution
        (SimpleNamespace(), {}, 4, 8, 8),
        (SimpleNamespace(vae=mono), {}, 4, 8, 8),  # spectrograms
        (SimpleNamespace(vae=new), {}, 4, 8, 8),  # an unknown scale
        (SimpleNamespace(), {"vae": Preview(torch.zeros(5, 3), 8, 1.0)}, 3, 8, 8),
        (SimpleNamespace(vae_scale_factor=8, _unpack_latents=pytest.fail), {}, 16, 16),  # Krea 2, NucleusMoE
    ):
        words = rf"its (packed )?latents of shape \({shape[0]}, .* is not supported"
        with pytest.raises(NotImplementedError, match=words):
            decode_latents(torch.zeros(1, *shape), host, **options)


def test_the_vae_is_restored_when_decoding_fails(pipe, monkeypatch):
    """A half-precision VAE that has to be upcast, as SDXL's, running out of memory."""
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    monkeypatch.setattr(pipe.vae, "decode", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        decode_latents(torch.zeros(1, 4, 8, 8), pipe)
    assert pipe.vae.dtype == torch.float16


def test_a_half_precision_vae_that_overflows_is_run_again_in_float32(pipe):
    """bfloat16 does not overflow; a float16 VAE whose settings do not warn of it does."""
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        pipe.vae.post_quant_conv.weight.mul_(1e4)
        pipe.vae.decoder.conv_in.weight.mul_(1e3)
    expected = decode_latents(latents, pipe)
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=False)
    again = decode_latents(latents, pipe)
    assert again.isfinite().all()
    assert pipe.vae.dtype == torch.float16
    torch.testing.assert_close(again, expected, atol=2e-2, rtol=0)  # the weights were rounded to float16


def test_a_tiny_vae_in_place_of_the_pipelines_own(pair):
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    trace = dtviz.generate(pair, "a dog", seeds=range(2))
    with torch.no_grad():
        decoded = tiny.decode(trace.final / tiny.config.scaling_factor).sample
    images = dtviz.decode(trace, pair, vae=tiny, final=True)
    torch.testing.assert_close(images, decoded.div(2).add(0.5).clamp(0, 1))


def test_preview_recovers_a_linear_autoencoder(pair, monkeypatch):
    """Where the decoder is a linear map of each cell, the fit is that map."""
    weights = torch.tensor([[0.1, 0.0, 0.02], [0.0, 0.1, 0.0], [-0.05, 0.0, 0.1], [0.03, 0.03, 0.0]])

    def linear(latents, **_):
        colours = torch.einsum("nchw,cr->nrhw", latents, weights) - 0.1
        return (2 * torch.nn.functional.interpolate(colours, scale_factor=2.0),)

    trace = dtviz.generate(pair, "a dog", seeds=range(4))
    trace = dtviz.Trace(trace.x0.clamp(-2, 2), trace.sigmas, trace.timesteps, trace.final.clamp(-2, 2))
    monkeypatch.setattr(pair.pipeline.vae, "decode", linear)
    pair.pipeline.vae.register_to_config(scaling_factor=1.0)
    preview = dtviz.fit_preview(trace, pair)
    torch.testing.assert_close(preview.weights[:4], weights, atol=1e-4, rtol=0)
    torch.testing.assert_close(preview.weights[4], torch.full((3,), 0.4), atol=1e-4, rtol=0)
    assert preview.r2 > 0.9999
    assert dtviz.decode(trace, pair, vae=preview).shape == (4, 4, 3, 16, 16)


def test_encode_is_the_autoencoders_mode_in_the_pipelines_scale(pair):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = pair.pipeline.vae
    with torch.no_grad():
        latents = vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(encode(images, pair, batch_size=2), latents * vae.config.scaling_factor)
    torch.testing.assert_close(encode(images.numpy(), pair.pipeline), latents * vae.config.scaling_factor)
    with pytest.raises(NotImplementedError, match="needs an AutoencoderKL, this pipeline has NoneType"):
        encode(images, object())
