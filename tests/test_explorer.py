"""dtviz.explore without a browser: its numbers against the library's, saving, stopping, traces without a model."""

import asyncio
import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.backend_bases import MouseEvent
from matplotlib.figure import Figure

import dtviz
from dtviz.explorer.session import Session, check_side, frame_at
from dtviz.explorer.view import CurvesImage, Line, Panel, View, montage, plot_curves, y_limits
from dtviz.explorer.widgets import SIZES, PanelWidget, read_seeds
from dtviz.metrics.factors import COLOURS


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
    numbers = session.panels()[0].numbers
    assert f"mean pairwise of 5 samples {spread.value:.3f} [{max(spread.low, 0):.3f}, {spread.high:.3f}]" in numbers
    assert f"Vendi score {dtviz.vendi(finals):.2f}" in numbers
    for images, decoded in ((view.images[-1], final), (view.x_t[1], dtviz.decode(trace, emoji, what="x_t")[1])):
        images = torch.from_numpy(images).movedim(-1, 1) / 255
        torch.testing.assert_close(images, decoded, atol=0.5 / 255 + 1e-6, rtol=0)  # rounded to 8 bits
    features = embed(torch.from_numpy(view.images[:, 2, 8:40, :32]).movedim(-1, 1) / 255)
    region = dtviz.similarity_to_final(features[:-1, None], features[-1:])[:, 0]
    np.testing.assert_allclose(view.region((8, 0, 40, 32), 2), region, atol=1e-6)
    session.look(words=["dog face", " house ", "dog face"])
    cosines = clip(x0[:, 0]) @ clip.text(["dog face", "house"]).T
    _, lines, _ = session.panels()[0].charts.values()
    assert [line.name for line in lines] == ["dog face", "house"]
    np.testing.assert_allclose(np.stack([line.y for line in lines], axis=1), cosines, atol=5e-3)


def test_factors_are_marked_where_x0_has_those_of_the_final_image(trace):
    """Painted: white with a big square in the middle; green with a small one at the bottom right, once moved left."""
    images, squares = np.empty((4, 1, 3, 64, 64), np.float32), [(0, 48, 8, 8), *((4, 24, 28, x) for x in (28, 20, 28))]
    for image, (colour, side, top, left) in zip(images, squares, strict=True):
        image[:] = np.array([*COLOURS.values()])[colour, :, None, None]
        image[..., top : top + side, left : left + side] = 0
    x0, preview = torch.from_numpy(images), {"weights": np.eye(4, 3).tolist(), "scale": 1, "r2": 1.0}
    view = View(replace(trace.select([0]), x0=x0, final=x0[3], x_t=None, provenance={"preview": preview}))
    [(title, lines)] = view.factors(0).items()
    assert title == "same as final: green, small, bottom right"
    assert {line.name: line.y for line in lines} == {
        "colour": (-1, 0, 0, 0), "size": (-1, 1, 1, 1), "place": (-1, 2, -1, 2),
    }  # fmt: skip
    panel = Panel("", "", "", None, view.images[0], 0, {title: lines}, 0.25, ())
    plot_curves(figure := Figure(), panel, y_limits([panel]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["colour", "size", "place"]
    assert figure.axes[0].get_ylim() == (2.5, -0.5)  # -1 is outside


def test_a_saved_trace_needs_no_model(session, trace, tmp_path, monkeypatch):
    *_, path = session.save(tmp_path / "dog")
    monkeypatch.setattr("dtviz.explorer.session.embedder", None)
    monkeypatch.setattr("dtviz.explorer.widgets.load", None)
    explorer = dtviz.explore(path).look(step=2, seed=3)
    [view], real = explorer.session.views, session.views[0].images[-1] / 255
    assert "latent cosine distance" in explorer.session.panels()[0].numbers and explorer.sides == ()
    assert "linear preview" in view.colours
    assert 1 - ((view.images[-1] / 255 - real) ** 2).mean() / real.var() > 0.5  # fitted to pixel means
    x0, final = view.trace.x0.flatten(2).numpy(), view.trace.final.flatten(1).numpy()
    np.testing.assert_allclose(view.distances, dtviz.similarity_to_final(x0, final), atol=1e-12)
    for what, message in (({"words": ["dog"]}, "words need a model that"), ({"box": (0, 0, 9, 9)}, "a region needs")):
        with pytest.raises(ValueError, match=message):
            explorer.look(**what)
    bare = replace(trace, x_t=None, provenance={})
    assert "false colours" in View(bare).colours
    with pytest.raises(NotImplementedError, match=r"packed latents of shape \(16, 64\)"):
        View(replace(bare, x0=trace.x0.flatten(3), final=trace.final.flatten(2)))


def test_own_pipeline_decodes_what_it_captured(emoji, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = emoji.pipeline
    with dtviz.capture(pipe) as trace:
        pipe("dog face", num_inference_steps=2, output_type="latent")
    explorer = dtviz.explore(trace, pair=pipe, embed="efficientnet-lite0")
    expected = (dtviz.decode(trace, pipe) * 255).round().byte().movedim(2, -1).numpy()
    assert np.abs(explorer.session.views[0].images[:-1].astype(int) - expected).max() <= 1
    assert explorer.sides == () and explorer.session.views[0].x_t is None
    assert [path.name for path in explorer.save("mine")] == ["mine.png", "mine.py", "mine.trace"]
    assert "explore(['mine.trace'], pair=...)" in (tmp_path / "mine.py").read_text()
    with pytest.raises(ValueError, match="there is no pair to run"):
        explorer.session.run("dog face", seeds=[0], sides=[{}])


def test_saved_code_shows_the_same(emoji, trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dtviz.explorer.widgets.load", {"emoji-dmd": emoji}.get)
    monkeypatch.setattr("dtviz.explorer.session.embedder", functools.cache(dtviz.embedder))
    session = Session(emoji)

    def check():
        session.look(step=1, seed=4, box=(0, 8, 32, 64), words=['a "b"', "dog face"])
        exec(session.code("first").replace(".save('first')", ""), again := {})
        for panel, other in zip(session.panels(), again["explorer"].session.panels(), strict=True):
            np.testing.assert_equal(vars(other), vars(panel))

    sides = [{"method": "hybrid", "base_guidance": 2.0}, {"method": "skip", "k": 3}]
    session.run("dog face", seeds=[1, 4], sides=sides)
    assert session.panels()[0].title == "hybrid, base_guidance=2.0: 1 base + 3 distilled steps, 5 evaluations"
    check()
    session.open([replace(trace.select([4]), x0=0 * trace.x0[:, [4]] + 1)])  # not what its settings give
    assert [path.name for path in session.save("first")] == ["first.png", "first.py", "first.trace"]
    assert plt.imread("first.png").std() > 0.1 and (tmp_path / "first.py").read_text() == session.code("first") + "\n"
    check()


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
    lines = [Line("a", (0.8, 0.0), "#ff0000"), Line("b", (0.2, 0.3, 0.2, 0.1), "#0000ff", "--")]
    panel = Panel("", "", "", None, image[None], 0, {"distance": lines}, 0.25, ())
    figure = Figure()
    [rule] = plot_curves(figure, panel, y_limits([panel]))
    assert [ax.get_ylim() for ax in figure.axes] == [(0, pytest.approx(1.4 * 0.8))]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0.5, 0.8], [1.0, 0.0]]
    assert rule.get_xdata() == [0.25, 0.25]
    curves = CurvesImage()
    moved = [curves.png(replace(panel, share=share), y_limits([panel])) for share in (0.5, 1.0, 0.5)]
    assert moved[0] == moved[2] == CurvesImage().png(replace(panel, share=0.5), y_limits([panel])) != moved[1]
    cells = montage(replace(panel, samples=np.full((3, 40, 40, 3), 7, np.uint8), sample=1))
    assert cells.shape == (88, 88, 4) and (cells[..., :3] == 7).all(axis=-1).sum() == 3 * 40 * 40
    assert cells[0, 44:, 3].all() and not cells[0, :44].any() and not cells[44:, 44:].any()  # a frame, an empty cell


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


def test_run_look_and_stop(explorer):
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

    # Stop leaves all as it was
    shown, scheduler = panel.title.value, explorer.session.pair.pipeline.scheduler
    explorer.sides[0].method.value, explorer.seeds.value = "skip", "4-6"
    press_run(explorer, stop=True)
    assert "Stopped" in explorer.status.value and explorer.session.seeds == (0, 1, 2)
    assert (panel.title.value, explorer.session.pair.pipeline.scheduler) == (shown, scheduler)
    explorer.run()
    assert "skip: 3 distilled steps" in panel.title.value
    assert explorer.session.seeds == (4, 5, 6) and explorer.seed.value == explorer.session.seed == 4


def test_a_box_on_an_image_that_is_not_square_is_where_it_was_drawn():
    """The image keeps its shape in the middle of its place, and so do the axes on which boxes are drawn."""
    boxes = []
    widget, image = PanelWidget(boxes.append), np.zeros((64, 32, 3), np.uint8)
    panel = Panel("", "", "", None, image[None], 0, {"d": [Line("a", (0.5,), "red")]}, 1.0, ())
    widget.show(panel, y_limits([panel]))
    for size, canvas in zip(SIZES, widget.canvases, strict=True):
        canvas.widget.figure.canvas.draw()
        place = canvas.axes.get_window_extent()
        assert (place.x0, place.x1, place.y0, place.y1) == pytest.approx((size / 4, 3 * size / 4, 0, size))
        left, right = size / 4 + 1, 3 * size / 4 - 1
        for start, end in (
            ((left, size - 1), (size / 2, size / 2)),
            ((left, size - 1), (right, 1)),
            ((size / 2, size / 2), (size / 2 + 1, size / 2 + 1)),
        ):
            for kind, place in (("press", start), ("motion", end), ("release", end)):
                kind = "motion_notify_event" if kind == "motion" else f"button_{kind}_event"
                canvas.widget.callbacks.process(kind, MouseEvent(kind, canvas.widget, *place, button=1))
    assert boxes == [(0, 0, 32, 16), (0, 0, 64, 32), ()] * 2
    assert plt.get_backend().lower() == "agg"  # ipympl's canvas leaves other figures alone


def test_settings_are_read_and_mistakes_shown_in_one_escaped_line(explorer):
    fields = {"seeds": explorer.seeds, "prompt": explorer.prompt, "settings": explorer.sides[0].settings}
    for name, text, message in (
        ("seeds", "<b>", "seeds=&#x27;&lt;b&gt;&#x27; must be numbers"),
        ("prompt", " ", "prompt=&#x27; &#x27; must be a text"),
        ("settings", "steps=many", "steps=&#x27;many&#x27; must be of type int"),
        ("settings", "4", "&#x27;4&#x27;: &#x27;&#x27;} has an unknown setting"),
    ):
        before, fields[name].value = fields[name].value, text
        press_run(explorer)
        assert message in explorer.status.value and "error-color" in explorer.status.value
        fields[name].value = before

    controls = explorer.sides[0]
    controls.method.value = "base"
    assert controls.settings.placeholder == "base_steps=20, base_guidance=5.0"
    controls.settings.value = "base_steps=8, k = 3,"
    assert check_side(controls.side()) == {"method": "base", "base_steps": 8}
