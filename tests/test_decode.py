import pytest
import torch

import dtviz
from dtviz.decode import decode_latents


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
