"""dtviz.explore without a browser: its numbers against the library's, saving, stopping, traces without a model."""

import asyncio
import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import dtviz
from dtviz.explorer.figure import CurvesImage, Line, Panel, montage, plot_curves, y_limits
from dtviz.explorer.session import Session, frame_at
from dtviz.explorer.view import View, latent_colours, with_preview
from dtviz.explorer.widgets import SIZES, PanelWidget, read_seeds


@pytest.fixture(scope="module")
def emoji():
    return dtviz.load("emoji-dmd")


@pytest.fixture(scope="module")
def trace(emoji):
    return dtviz.generate(emoji, "dog face", method="hybrid", seeds=range(5), x_t=True)


@pytest.fixture(scope="module")
def opened(emoji, trace):
    session = Session(emoji)
    session.open([trace])
    return session


@pytest.fixture
def session(opened):
    return copy.copy(opened)


def test_view_has_the_numbers_of_the_library(session, emoji, trace):
    embed, clip = dtviz.embedder("efficientnet-lite0"), dtviz.embedder("emoji-clip")
    x0, final = dtviz.decode(trace, emoji), dtviz.decode(trace, emoji, final=True)
    steps, finals = np.stack([embed(step) for step in x0]), embed(final)
    [view] = session.views
    # decoded in other batches: single precision through two networks
    np.testing.assert_allclose(view.distances, dtviz.similarity_to_final(steps, finals), atol=1e-5)
    spread = dtviz.mean_pairwise(finals)
    expected = (
        f"mean pairwise of 5 samples {spread.value:.3f} [{max(spread.low, 0):.3f}, {spread.high:.3f}], Vendi score"
    )
    assert f"{expected} {dtviz.vendi(finals):.2f}" in session.panels()[0].numbers
    for images, decoded in ((view.images[-1], final), (view.x_t[1], dtviz.decode(trace, emoji, what="x_t")[1])):
        images = torch.from_numpy(images).movedim(-1, 1) / 255
        torch.testing.assert_close(images, decoded, atol=0.5 / 255 + 1e-6, rtol=0)  # rounded to 8 bits
    # 8-bit images beside exact ones: 0.003 is the largest difference seen
    np.testing.assert_allclose(view.region((0, 0, *view.images.shape[2:4]), 2), view.distances[:, 2], atol=1e-2)
    session.look(words=["dog face", " house ", "dog face"])
    cosines = clip(x0[:, 0]) @ clip.text(["dog face", "house"]).T
    _, (_, lines) = session.panels()[0].charts
    assert [line.name for line in lines] == ["dog face", "house"]
    np.testing.assert_allclose(np.stack([line.y for line in lines], axis=1), cosines, atol=5e-3)


def test_region_depends_on_nothing_outside(trace):
    changed = trace.x0.clone()
    changed[0, :, :, :4, :4] *= -1  # latents of one corner
    before, after = (View.of(one) for one in (trace, replace(trace, x0=changed)))
    height, width = before.images.shape[2:4]
    corner, other = (0, 0, height // 2, width // 2), (height // 2, width // 2, height, width)
    assert np.array_equal(before.region(other, 0), after.region(other, 0))
    assert after.region(corner, 0)[0] == pytest.approx(2 - before.region(corner, 0)[0], abs=1e-6)  # 1 - cos(-v)


def test_a_saved_trace_needs_no_model(session, tmp_path, monkeypatch):
    *_, path = session.save(tmp_path / "dog")
    monkeypatch.setattr("dtviz.explorer.session.embedder", None)
    monkeypatch.setattr("dtviz.explorer.widgets.load", None)
    explorer = dtviz.explore(path).look(step=2, seed=3, box=(0, 0, 32, 32))
    [view] = explorer.session.views
    assert view.measure == "latent cosine distance" and "linear preview" in view.colours and explorer.sides == ()
    x0, final = view.trace.x0.flatten(2).numpy(), view.trace.final.flatten(1).numpy()
    np.testing.assert_allclose(view.distances, dtviz.similarity_to_final(x0, final), atol=1e-12)
    with pytest.raises(ValueError, match="words need a model that reads"):
        explorer.look(words=["dog"])


def test_own_pipeline_decodes_what_it_captured(emoji, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = emoji.pipeline
    with dtviz.capture(pipe) as trace:
        pipe("dog face", num_inference_steps=3, output_type="latent")
    explorer = dtviz.explore(trace, pair=pipe, embed="efficientnet-lite0")
    expected = (dtviz.decode(trace, pipe) * 255).round().byte().movedim(2, -1).numpy()
    assert np.abs(explorer.session.views[0].images[:-1].astype(int) - expected).max() <= 1
    assert explorer.sides == () and explorer.session.views[0].x_t is None
    assert [path.name for path in explorer.save("mine")] == ["mine.png", "mine.py", "mine.trace"]
    assert "pair = ...  # your own StableDiffusionPipeline" in (tmp_path / "mine.py").read_text()
    with pytest.raises(ValueError, match="there is no pair to run"):
        explorer.session.run("dog face", seeds=[0], sides=[{}])


def test_colours_without_a_model(session, emoji, trace):
    real = session.views[0].images[-1] / 255
    preview = View.of(with_preview(trace, emoji))
    assert 1 - ((preview.images[-1] / 255 - real) ** 2).mean() / real.var() > 0.5  # fitted to pixel means
    assert "false colours" in latent_colours(trace)[1]
    packed = replace(trace, x0=trace.x0.flatten(3), final=trace.final.flatten(2), x_t=None)
    with pytest.raises(NotImplementedError, match=r"latents of shape \(16, 64\) are packed or of a video"):
        latent_colours(packed)


@pytest.mark.parametrize("from_trace", [False, True])
def test_saved_code_makes_the_same_picture(emoji, trace, from_trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dtviz.explorer.widgets.load", {"emoji-dmd": emoji}.get)
    session = Session(emoji)
    if from_trace:
        session.open([replace(trace, x0=0 * trace.x0 + 1)])  # not what its settings give
    else:
        sides = [{"method": "hybrid", "base_guidance": 2.0}, {"method": "base", "base_steps": 4}]
        session.run("dog face", seeds=[1, 4], sides=sides)
        assert session.panels()[0].title == "hybrid, base_guidance=2.0: 1 base + 3 distilled steps, 5 evaluations"
    session.look(step=1, seed=4, box=(0, 8, 32, 64), words=['a "b"', "dog face"])
    assert [path.name for path in session.save("first")][:3] == ["first.png", "first.py", "first.trace"]
    exec((tmp_path / "first.py").read_text().replace('.save("first")', '.save("again")'), {})
    assert np.array_equal(plt.imread("first.png"), plt.imread("again.png"))


def test_both_sides_stand_at_the_same_share_of_their_steps():
    for short, long in ((4, 20), (3, 7), (1, 1), (20, 20)):
        for position in range(long):
            frame = frame_at(position, short, long)
            assert (frame + 1) / short >= (position + 1) / long > frame / short - 1e-12
        assert frame_at(long, short, long) == short


def test_looking_where_there_is_nothing_is_refused(session):
    for wrong, message in (
        ({"step": 9}, "step=9 must be from 0 to 4"),
        ({"seed": 77}, "seed=77 is not one of"),
        ({"box": (0, 0, 65, 1)}, r"box=\(0, 0, 65, 1\) must be"),
        ({"box": (3, 3, 3, 9)}, "box="),
        ({"box": (3, 3)}, "box="),
        ({"words": list("abcdefghi")}, "words has 9 entries"),
    ):
        with pytest.raises(ValueError, match=message):
            session.look(**wrong)
    with pytest.raises(ValueError, match="nothing to show or save yet"):
        Session().picture()


def test_bad_arguments_are_refused(emoji):
    for text in ("", "a", "3-1", "-1", "0-5000", "<b>"):
        with pytest.raises(ValueError, match="seeds="):
            read_seeds(text)
    for arguments, message in (
        ({"source": "emoji-dmx"}, "emoji-dmx"),
        ({"sides": []}, "sides has 0 entries"),
        ({"sides": [{"method": "adaptive"}]}, "method='adaptive' is not one of"),
        ({"sides": [{"Steps": 3}]}, "unknown setting"),
    ):
        with pytest.raises(ValueError, match=message):
            dtviz.explore(**({"source": emoji} | arguments))


def test_curves_are_drawn_from_the_lines_and_markers_move():
    image = np.zeros((8, 8, 3), np.uint8)
    lines = (Line("a", (0.8, 0.0), "#ff0000"), Line("b", (0.2, 0.3, 0.2, 0.1), "#0000ff", "--"))
    panel = Panel("", "", "", None, image[None], 0, (("distance", lines),), 1.0, ())
    figure = Figure()
    move = plot_curves(figure, panel, y_limits([panel]))
    rule, *dots = move(0.25)
    assert [ax.get_ylim() for ax in figure.axes] == [(0, pytest.approx(1.4 * 0.8))]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0.5, 0.8], [1.0, 0.0]]
    assert rule.get_xdata() == [0.25, 0.25]
    assert [dot.get_xydata().tolist() for dot in dots] == [[[0.5, 0.8]], [[0.25, 0.2]]]
    curves = CurvesImage()
    moved = [curves.png(replace(panel, share=share), y_limits([panel])) for share in (0.5, 1.0, 0.5)]
    assert moved[0] == moved[2] == CurvesImage().png(replace(panel, share=0.5), y_limits([panel])) != moved[1]
    cells = montage(replace(panel, samples=np.full((3, 40, 40, 3), 7, np.uint8), sample=1))
    assert cells.shape == (88, 88, 4) and (cells[..., :3] == 7).all(axis=-1).sum() == 3 * 40 * 40
    assert (
        cells[0, 44:, 3].all() and not cells[0, :44].any() and not cells[44:, 44:].any()
    )  # a frame, and an empty cell


# Widgets, without a kernel


@pytest.fixture
def explorer(emoji):
    return dtviz.explore(emoji, prompt="dog face", seeds=range(3))


def press_run(explorer, stop=False):
    async def press():
        explorer.run_button.click()
        if stop:
            await asyncio.sleep(0)  # the thread starts
            assert explorer.run_button.disabled and not explorer.stop_button.disabled
            explorer.stop_button.click()
        await explorer.task
        assert not explorer.run_button.disabled and explorer.stop_button.disabled

    asyncio.run(press())


def test_run_button_makes_what_run_makes(explorer):
    press_run(explorer)
    panel = explorer.panels[0]
    assert explorer.status.value == "" and explorer.step.value == explorer.step.max == 4
    before = panel.samples.value
    explorer.step.value = 0
    assert panel.samples.value != before and "x0, step 1 of 4" in panel.caption.value
    curves = [panel.curves.value]
    explorer.words.value = "<b>dog</b>"
    curves.append(panel.curves.value)
    for box in ((0, 0, 32, 32), ()):
        panel.canvases[0].on_box(box)
        assert explorer.session.box == box
        curves.append(panel.curves.value)
    assert len(set(curves)) == 3 and curves[1] == curves[3]
    explorer.seeds.value = "4-6"
    explorer.run()
    assert explorer.session.seeds == (4, 5, 6) and explorer.seed.value == explorer.session.seed == 4


def test_stop_leaves_all_as_it_was(explorer):
    explorer.run()
    shown, scheduler = explorer.panels[0].title.value, explorer.session.pair.pipeline.scheduler
    explorer.sides[0].method.value = "skip"
    press_run(explorer, stop=True)
    assert "Stopped" in explorer.status.value
    assert (explorer.panels[0].title.value, explorer.session.pair.pipeline.scheduler) == (shown, scheduler)
    press_run(explorer)
    assert "skip: 3 distilled steps" in explorer.panels[0].title.value


def test_a_box_on_an_image_that_is_not_square_is_where_it_was_drawn():
    """The image keeps its shape in the middle of its place, and so do the axes on which boxes are drawn."""
    boxes = []
    widget, image = PanelWidget(boxes.append), np.zeros((64, 32, 3), np.uint8)
    panel = Panel("", "", "", None, image[None], 0, (("d", (Line("a", (0.5,), "red"),)),), 1.0, ())
    widget.show(panel, y_limits([panel]))
    for size, canvas in zip(SIZES, widget.canvases, strict=True):
        canvas.widget.figure.canvas.draw()
        place, back = canvas.axes.get_window_extent(), canvas.axes.transData.inverted()
        assert (place.x0, place.x1, place.y0, place.y1) == pytest.approx((size / 4, 3 * size / 4, 0, size))
        for corners in (((size / 4, size), (size / 2, size / 2)), ((0, size), (size, 0)), ((80, 80), (81, 81))):
            canvas.select(*(SimpleNamespace(xdata=x, ydata=y) for x, y in map(back.transform, corners)))
    assert boxes == [(0, 0, 32, 16), (0, 0, 64, 32), ()] * 2
    assert plt.get_backend().lower() == "agg"  # ipympl's canvas leaves other figures alone


def test_mistakes_are_shown_in_one_line_and_escaped(explorer):
    fields = {"seeds": explorer.seeds, "prompt": explorer.prompt, "settings": explorer.sides[0].settings}
    for name, text, message in (
        ("seeds", "<b>", "seeds=&#x27;&lt;b&gt;&#x27; must be numbers"),
        ("prompt", " ", "prompt=&#x27; &#x27; must be a text"),
        ("settings", "steps=many", "steps=&#x27;many&#x27; must be of type int"),
        (
            "settings",
            "4",
            "side={&#x27;method&#x27;: &#x27;distilled&#x27;, &#x27;4&#x27;: &#x27;&#x27;} has an unknown setting",
        ),
    ):
        before, fields[name].value = fields[name].value, text
        press_run(explorer)
        assert message in explorer.status.value and 'role="alert"' in explorer.status.value
        fields[name].value = before


def test_settings_are_those_of_the_method(explorer):
    controls = explorer.sides[0]
    controls.method.value = "base"
    assert controls.settings.placeholder == "base_steps=20, base_guidance=5.0"
    controls.settings.value = "base_steps=8, k = 3,"
    assert controls.side() == {"method": "base", "base_steps": 8}
    controls.method.value = "skip"
    assert controls.side() == {"method": "skip", "k": 3}
