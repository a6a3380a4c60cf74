"""The joined stages on a tiny random pair and a tiny embedder: kept, shared, never made twice."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import dtviz
from dtviz import drawings, study
from dtviz.decode import reconstruct
from dtviz.store import Store
from dtviz.study import EMOJI_PROMPTS, PAPER_PROMPTS, Study, save_figure


@dataclass
class Pixels:
    """An embedder with a closed form: the normalised pixels."""

    fingerprint: str = "pixels"
    title: str = "pixel"
    calls: int = 0

    def __call__(self, images) -> np.ndarray:
        self.calls += 1
        flat = np.asarray(images, dtype=np.float32).reshape(len(images), -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.fixture
def tiny(pair, tmp_path) -> Study:
    return Study(replace(pair, fingerprint="tiny", base_fingerprint="tiny base"), Pixels(), (0, 1, 2), Store(tmp_path))


def test_features_are_of_the_decoded_images(tiny):
    trace = dtviz.generate(tiny.pair, "a dog", method="hybrid", seeds=range(3))
    expected = Pixels()(dtviz.decode(trace, tiny.pair, final=True))
    np.testing.assert_allclose(tiny.features("a dog", "hybrid"), expected, atol=1e-4)
    steps = tiny.features("a dog", "hybrid", steps=True)
    assert steps.shape == (4, 3, expected.shape[1])
    np.testing.assert_allclose(steps[1], Pixels()(dtviz.decode(trace, tiny.pair)[1]), atol=1e-4)


def test_a_grid_holds_each_image_where_its_table_says(tiny):
    methods = {"Student": ("distilled", {}), "Two steps": ("hybrid", {"k": 2}), "One step": ("hybrid", {"k": 1})}
    images, cells = tiny.grid(iter(["a dog", "a cat"]), methods)
    assert (images.shape, images.dtype) == ((2, 9, 3, 16, 16), np.float32)
    assert list(cells["seed"][:4]) == [0, 1, 2, 0]
    for image, (prompt, heading, seed) in zip(
        images.reshape(-1, 3, 16, 16), cells.itertuples(index=False), strict=True
    ):
        method, settings = methods[heading]
        alone = replace(tiny, seeds=(seed,)).images(prompt, method, **settings)[0]
        np.testing.assert_allclose(image, alone, atol=1e-5)  # float32, decoded in batches of another size
    assert list(tiny.runs) == ["distilled", "hybrid, k=2", "hybrid, k=1"]


def test_nothing_is_made_twice(tiny, monkeypatch):
    first = tiny.features("a dog", "distilled")
    monkeypatch.setattr(study, "generate", None)  # whoever calls it again fails
    calls = tiny.embed.calls
    assert np.array_equal(tiny.features("a dog", "distilled"), first)
    fewer = replace(tiny, seeds=(1,))
    assert torch.equal(fewer.trace("a dog", "distilled").final, tiny.trace("a dog", "distilled").final[1:2])
    assert tiny.embed.calls == calls


def test_images_are_decoded_once(tiny, monkeypatch):
    first = tiny.images("a dog", "distilled")
    np.testing.assert_array_equal(first, dtviz.decode(tiny.trace("a dog", "distilled"), tiny.pair, final=True).numpy())
    monkeypatch.setattr(study, "decode", None)
    np.testing.assert_array_equal(tiny.images("a dog", "distilled"), first)
    np.testing.assert_array_equal(replace(tiny, seeds=(2, 0)).images("a dog", "distilled"), first[[2, 0]])


def test_images_from_elsewhere_are_embedded_once(tiny):
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    first, calls = tiny.features_of(images), tiny.embed.calls
    np.testing.assert_array_equal(first, Pixels()(images))
    np.testing.assert_array_equal(tiny.features_of(images.copy()), first)
    assert tiny.embed.calls == calls
    assert tiny.features_of(images[:2]).shape[0] == 2
    assert tiny.features_of(images.reshape(3, 3, 32, 8)).shape == first.shape  # the same bytes, other images
    assert tiny.embed.calls == calls + 2


def test_seconds_are_measured_once_on_a_machine(tiny, monkeypatch):
    methods = {"student": ("distilled", {}), "hybrid": ("hybrid", {"k": 1})}
    first = tiny.seconds(methods, prompt="a dog", turns=1)
    assert list(first) == ["student", "hybrid"]
    assert min(first.values()) > 0
    assert tiny.seconds(methods, prompt="a dog", turns=1) == first
    monkeypatch.setattr(study.platform, "node", lambda: "another")
    assert tiny.seconds(methods, prompt="a dog", turns=1) != first


def test_other_weights_or_settings_are_another_result(tiny):
    plain = tiny.trace("a dog", "base")
    assert not torch.equal(plain.final, tiny.trace("a dog", "base", base_guidance=5.0).final)
    other = replace(tiny, pair=replace(tiny.pair, fingerprint="other", base_fingerprint="other base"))
    assert tiny.store.root == other.store.root
    files = len(list(tiny.store.root.rglob("*.safetensors")))
    other.trace("a dog", "base")
    assert len(list(tiny.store.root.rglob("*.safetensors"))) == files + len(other._blocks())


def test_blocks_are_aligned(tiny):
    """Whoever asks for seeds 1 and 4 in blocks of two gets the blocks that everyone else gets."""
    assert replace(tiny, seeds=(4, 1))._blocks() == [(0, 1), (4, 5)]
    assert replace(tiny, seeds=(4, 1)).trace("a dog", "distilled").seeds == (4, 1)


def test_a_pair_made_by_hand_is_not_stored(pair, tmp_path):
    by_hand = Study(pair, Pixels(), (0,), Store(tmp_path))
    by_hand.trace("a dog", "distilled")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_prompts_and_provenance(tiny):
    assert tiny.prompts == PAPER_PROMPTS
    assert replace(tiny, pair=replace(tiny.pair, name="emoji-dmd")).prompts == EMOJI_PROMPTS
    tiny.trace("a dog", "hybrid", k=2)
    told = tiny.provenance(figure="x")
    run = told["runs"]["hybrid, k=2"]
    assert run["steps_run"] == {"base": 2, "distilled": 2}
    assert (run["guidance"], run["base_guidance"], run["nfe"]) == (0.0, 0.0, {"base": 2, "distilled": 2})
    assert "hybrid, k=2: 2 base (guidance 0) + 2 distilled (guidance 0)" in tiny.describe(prompts=1, profile="quick")
    tiny.features("a dog", "distilled", guidance=[0.0, 0.0, 3.0, 3.0])
    told = "distilled, guidance=0 x 2, 3 x 2: 4 distilled (guidance 0 x 2, 3 x 2)"
    assert told in tiny.describe(prompts=1, profile="quick")
    assert json.dumps(told)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda study_: study_.choose(99), "n_prompts=99 must be from 1 to 5"),
        (lambda study_: study_.choose(-1), "n_prompts=-1"),
        (lambda study_: study.seeds_of("ful", 0, quick=1, full=2), "profile='ful' is not one of quick, full, paper"),
        (lambda study_: study.seeds_of("full", 1, quick=3, full=5, least=2), "n_seeds=1 must be at least 2"),
        (lambda study_: Study.open("emoji-dmd", seeds=[]), "at least one seed"),
        (lambda study_: Study.open("emoji", seeds=[0]), "did you mean 'emoji-"),
    ],
)
def test_bad_input_is_refused_before_any_work(tiny, call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny)


def test_seeds_of_a_profile():
    assert study.seeds_of("quick", 0, quick=3, full=5) == range(3)
    assert study.seeds_of("full", 0, quick=3, full=5) == range(5)
    assert study.seeds_of("full", 4, quick=3, full=5) == range(4)


def test_every_prompt_was_drawn_by_five_artists():
    real = drawings.load()
    assert len(EMOJI_PROMPTS) == len(set(EMOJI_PROMPTS)) >= 30
    for prompt in EMOJI_PROMPTS:
        assert len(set(real.of(prompt).artists)) >= 5, prompt
    with pytest.raises(ValueError, match="'unicorn rocket' is none of"):
        real.of("unicorn rocket")


def test_artists_are_those_of_the_nearest_drawings_through_the_autoencoder(tiny):
    """What a model that copies one drawing would make is that artist's, however bad the autoencoder."""
    real = drawings.load().of("dog face")
    copies = reconstruct(real.images, tiny.pair)
    assert tuple(tiny.artists("dog face", tiny.embed(copies))) == real.artists
    assert tiny.drawn_features("dog face").shape == (len(real.artists), 3 * 64 * 64)


def test_students_share_the_samples_of_their_base(tiny, monkeypatch):
    """Another student of the same base: its base samples are read, not made, and say whose they are."""
    first = tiny.trace("a dog", "base")
    other = replace(tiny, pair=replace(tiny.pair, name="other", fingerprint="other", guidance=1.5))
    assert not torch.equal(other.trace("a dog", "distilled").x0[0], other.trace("a dog", "base").x0[0])
    monkeypatch.setattr(study, "generate", None)
    again = other.trace("a dog", "base")
    assert torch.equal(again.final, first.final)
    assert again.provenance["pair"] == "other"
    unknown = replace(other, pair=replace(other.pair, base_fingerprint=""))
    with pytest.raises(TypeError):  # of a base that is not known nothing is shared
        unknown.trace("a dog", "base")


def test_a_study_tells_what_ran(tiny):
    for k in (1, 2, 1):
        tiny.features("a dog", "hybrid", k=k)
    assert tiny.ran("hybrid", k=2)["steps_run"] == {"base": 2, "distilled": 2}
    assert tiny.ran("hybrid", k=1)["nfe"] == {"base": 1, "distilled": 3}
    with pytest.raises(KeyError):
        tiny.ran("hybrid", k=3)
    assert "hybrid, k=2: 2 base" in tiny.describe(prompts=1, profile="quick")
    assert tiny.describe(prompts=1, profile="quick", runs=False).endswith("quick profile.")


def test_save_figure(tmp_path):
    import pandas as pd
    from matplotlib.figure import Figure

    paths = save_figure(
        Figure(), tmp_path, "x", provenance={"a": 1}, table=pd.DataFrame({"v": [1.5]}), units={"v": "s"}
    )
    assert [path.suffix for path in paths] == [".png", ".pdf", ".json", ".csv"]
    assert all(path.stat().st_size for path in paths)


def test_signals_of_an_adaptive_run_are_kept_for_each_sample(tiny):
    """In blocks of the pair's batch, each asked before every hand-over; and its images are those of the largest k."""
    never = dtviz.Adaptive("disagreement", (-1.0, -1.0))
    seen = tiny.signals("a dog", never, handover="matched-sigma")
    assert seen.shape == (2, len(tiny.seeds))
    assert (seen > 0).all()
    ours = tiny.trace("a dog", "adaptive", adaptive=never, handover="matched-sigma")
    assert torch.equal(ours.final, tiny.trace("a dog", "hybrid", k=3, handover="matched-sigma").final)
    assert len(np.unique(seen)) == seen.size
