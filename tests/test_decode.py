import diffusers
import pytest
import torch

import dtviz
from dtviz.decode import decode_latents, reconstruct


def test_equals_the_pipelines_own_images(pipe):
    """What decode makes of the final latents is what the pipeline itself returns."""
    images = pipe("a dog", generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="pt").images
    with dtviz.capture(pipe) as trace:
        pipe("a dog", generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="latent")
    torch.testing.assert_close(dtviz.decode(trace, pipe, final=True), torch.as_tensor(images), atol=1e-5, rtol=0)


def test_shapes_and_range(pair):
    trace = dtviz.generate(pair, "a dog", seeds=range(3), x_t=True)
    images = dtviz.decode(trace, pair)
    assert images.shape == (4, 3, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert dtviz.decode(trace, pair, what="x_t").shape == images.shape


def test_chunks_do_not_matter(pair):
    trace = dtviz.generate(pair, "a dog", seeds=range(3))
    torch.testing.assert_close(dtviz.decode(trace, pair, batch_size=1), dtviz.decode(trace, pair), atol=1e-5, rtol=0)


def test_the_vae_is_left_as_it_was_when_decoding_fails(pipe, monkeypatch):
    """A half-precision VAE that has to be upcast, as SDXL's, running out of memory."""
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    monkeypatch.setattr(pipe.vae, "decode", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        decode_latents(torch.zeros(1, 4, 8, 8), pipe)
    assert pipe.vae.dtype == torch.float16


def test_what_is_not_there_is_refused(pair):
    trace = dtviz.generate(pair, "a dog", seeds=[0])
    with pytest.raises(ValueError, match="x_t=True"):
        dtviz.decode(trace, pair, what="x_t")
    with pytest.raises(ValueError, match="'video' is not one of x0, final, x_t"):
        dtviz.decode(trace, pair, what="video")


def test_step_by_step_is_the_same(pair):
    trace = dtviz.generate(pair, "a dog", seeds=range(2))
    steps = dtviz.decode_steps(trace, pair)
    assert next(iter(steps)).shape == (2, 3, 16, 16)
    torch.testing.assert_close(torch.stack(list(dtviz.decode_steps(trace, pair))), dtviz.decode(trace, pair))


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


def test_tiny_vae_in_place_of_the_pipelines_own(pair):
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    trace = dtviz.generate(pair, "a dog", seeds=range(2))
    images = dtviz.decode(trace, pair, vae=tiny, final=True)
    assert images.shape == (2, 3, 16, 16)
    with torch.no_grad():
        decoded = tiny.decode(trace.final / tiny.config.scaling_factor).sample
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
    images = dtviz.decode(trace, pair, vae=preview)
    assert images.shape == (4, 4, 3, 16, 16)


def test_preview_of_the_embedded_pair_is_fair():
    """On real latents a linear map explains most of what the VAE paints, on seeds that it was not fitted to."""
    pair = dtviz.load("emoji-dmd")
    preview = dtviz.fit_preview(dtviz.generate(pair, "red heart", seeds=range(8)), pair)
    assert 0.5 < preview.r2 <= 1
    other = dtviz.generate(pair, "red heart", seeds=range(20, 24))
    real, rough = dtviz.decode(other, pair, final=True), dtviz.decode(other, pair, vae=preview, final=True)
    assert rough.shape == real.shape
    centred = torch.corrcoef(torch.stack([real.flatten(), rough.flatten()]))[0, 1]
    assert centred > 0.7


def test_reconstruct_is_encode_and_decode(pair):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = pair.pipeline.vae
    with torch.no_grad():
        expected = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample.div(2).add(0.5).clamp(0, 1)
    torch.testing.assert_close(reconstruct(images, pair, batch_size=2), expected)
    torch.testing.assert_close(reconstruct(images.numpy(), pair.pipeline), expected)
    with pytest.raises(NotImplementedError, match="needs an AutoencoderKL, this pipeline has NoneType"):
        reconstruct(images, object())
