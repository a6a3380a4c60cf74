"""dtviz.explore without a browser: what is shown against the library's own numbers, saving, stopping, traces without a model."""

import re
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

import dtviz
from dtviz.explorer.chart import HEIGHT, Line, chart
from dtviz.explorer.panel import SIZE, Panel
from dtviz.explorer.seen import LATENT, Seen, colours_of, with_preview
from dtviz.explorer.session import Session
from dtviz.explorer.state import Side, State, frame_at, read_box, read_seeds, write_seeds
from dtviz.explorer.widgets import Explorer

SEEDS = range(5)


@pytest.fixture(scope="module")
def emoji():
    return dtviz.load("emoji-dmd")


@pytest.fixture(scope="module")
def trace(emoji):
    """A hybrid's, of five seeds."""
    return dtviz.generate(emoji, "dog face", method="hybrid", seeds=SEEDS, x_t=True)


@pytest.fixture
def session(emoji, trace):
    session = Session(emoji)
    session.open([trace])
    return session


# Numbers


def test_what_is_seen_is_what_the_library_says(session, emoji, trace):
    embed = dtviz.embedder("efficientnet-lite0")
    plans, final = dtviz.decode(trace, emoji), dtviz.decode(trace, emoji, final=True)
    steps, finals = np.stack([embed(step) for step in plans]), embed(final)
    [seen] = session.seen
    # decoded in other batches: single precision through two networks
    np.testing.assert_allclose(seen.distances, dtviz.similarity_to_final(steps, finals), atol=1e-5)
    for frame, features in ((seen.steps, finals), (1, steps[1])):
        assert seen.spread(frame).value == pytest.approx(dtviz.mean_pairwise(features).value, abs=1e-5)
        assert seen.spread(frame).high == pytest.approx(dtviz.mean_pairwise(features).high, abs=1e-4)
        assert seen.vendi(frame) == pytest.approx(dtviz.vendi(features), abs=1e-4)
    pictures = torch.from_numpy(seen.pictures[-1]).movedim(-1, 1) / 255
    torch.testing.assert_close(pictures, final, atol=0.5 / 255 + 1e-6, rtol=0)  # rounded to 8 bits
    noisy = torch.from_numpy(seen.noisy[1]).movedim(-1, 1) / 255
    torch.testing.assert_close(noisy, dtviz.decode(trace, emoji, what="x_t")[1], atol=0.5 / 255 + 1e-6, rtol=0)


def test_region_of_the_whole_picture_is_the_curve_itself(session):
    [seen] = session.seen
    height, width = seen.size
    # 8-bit pictures beside exact ones: .003 is the most that 1 - cos was seen to move
    np.testing.assert_allclose(seen.region((0, 0, height, width), 2), seen.distances[:, 2], atol=1e-2)


def test_region_sees_only_what_is_inside(trace):
    """Of latents: a change in one corner moves the curve of that corner and of no other."""
    changed = trace.x0.clone()
    changed[0, :, :, :4, :4] *= -1
    before, after = (Seen.look(one) for one in (trace, replace(trace, x0=changed)))
    height, width = before.size
    corner, other = (0, 0, height // 2, width // 2), (height // 2, width // 2, height, width)
    assert np.array_equal(before.region(other, 0), after.region(other, 0))
    assert after.region(corner, 0)[0] == pytest.approx(
        2 - before.region(corner, 0)[0], abs=1e-6
    )  # 1 - cos of the opposite


def test_timeline_is_the_cosine_of_plan_and_words(session, emoji, trace):
    session.look(words=["dog face", " house ", "dog face"])
    clip = dtviz.embedder("emoji-clip")
    [shown] = session.shown()
    cosines = clip(dtviz.decode(trace, emoji)[:, 0]) @ clip.text(["dog face", "house"]).T
    assert [line.name for line in shown.timeline] == ["dog face", "house"]
    np.testing.assert_allclose(
        np.stack([line.y for line in shown.timeline], axis=1), cosines, atol=5e-3
    )  # 8-bit pictures


# Traces without a model


def test_a_saved_trace_needs_no_model(session, tmp_path, monkeypatch):
    [path] = session.save_traces(tmp_path / "dog")
    monkeypatch.setattr("dtviz.explorer.session.embedder", None)
    monkeypatch.setattr("dtviz.explorer.widgets.load", None)
    explorer = dtviz.explore(path, step=2, seed=3, box=(0, 0, 32, 32))
    [seen] = explorer.session.seen
    assert seen.measure == LATENT
    assert "linear preview" in seen.colours
    flat = seen.trace.x0.flatten(2).numpy()
    expected = dtviz.similarity_to_final(flat, seen.trace.final.flatten(1).numpy())
    np.testing.assert_allclose(seen.distances, expected, atol=1e-12)
    assert explorer.choices == ()
    with pytest.raises(ValueError, match="words need a model that reads"):
        explorer.look(words=["dog"])


def test_a_pipeline_of_ones_own_decodes_what_it_captured(emoji, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = emoji.pipeline
    with dtviz.capture(pipe) as trace:
        pipe("dog face", num_inference_steps=3, output_type="latent")
    explorer = dtviz.explore(trace, pair=pipe, embed="efficientnet-lite0")
    expected = (dtviz.decode(trace, pipe) * 255).round().byte().movedim(2, -1).numpy()
    assert np.abs(explorer.session.seen[0].pictures[:-1].astype(int) - expected).max() <= 1
    assert explorer.choices == () and explorer.session.seen[0].noisy is None
    assert [path.name for path in explorer.save("mine")] == ["mine.png", "mine.py", "mine.trace"]
    assert "pair = ...  # your own StableDiffusionPipeline" in (tmp_path / "mine.py").read_text()
    with pytest.raises(ValueError, match="there is no pair to run"):
        explorer.session.run("dog face", seeds=[0], sides=[Side()])


def test_preview_colours_are_near_the_real_ones(session, emoji, trace):
    preview, told = colours_of(with_preview(trace, emoji))
    real = session.seen[0].pictures[-1].astype(float) / 255
    rough = Seen.look(with_preview(trace, emoji)).pictures[-1].astype(float) / 255
    explained = 1 - ((rough - real) ** 2).mean() / real.var()
    assert explained > 0.5 and f"{preview.r2:.2f}" in told  # pixel means are fitted, pixels are finer
    false, told = colours_of(trace)
    assert "false colours" in told and np.isnan(false.r2)


def test_videos_and_packed_latents_are_refused_by_shape(trace):
    packed = replace(trace, x0=trace.x0.flatten(3), final=trace.final.flatten(2), x_t=None)
    with pytest.raises(NotImplementedError, match=r"latents of shape \(16, 64\) are packed or of a video"):
        Session().open([packed])


# Saving


def test_the_code_makes_the_same_picture_again(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session.look(step=1, seed=2, box=(0, 8, 32, 64), words=['a "b"', "dog face"])
    assert [path.name for path in session.save("first")] == ["first.png", "first.py"]
    code = (tmp_path / "first.py").read_text()
    assert len([line for line in code.splitlines() if line and line != "import dtviz"]) == 3
    exec(code.replace('.save("first")', '.save("again")'), {})
    first, again = (plt.imread(tmp_path / f"{name}.png") for name in ("first", "again"))
    assert np.array_equal(first, again)


def test_a_trace_that_cannot_be_made_again_is_saved_with_its_picture(emoji, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Session(emoji)
    session.open([dtviz.generate(emoji, "dog face", method="hybrid", handed="zero", seeds=range(2))])
    assert [path.name for path in session.save("zero")] == ["zero.png", "zero.py", "zero.trace"]
    assert 'dtviz.Trace.load("zero.trace")' in (tmp_path / "zero.py").read_text()
    exec((tmp_path / "zero.py").read_text().replace('.save("zero")', '.save("again")'), {})
    assert np.array_equal(plt.imread("zero.png"), plt.imread("again.png"))


def test_sides_are_named_by_what_differs_from_the_pair(emoji):
    session = Session(emoji)
    sides = [
        Side(method="base", base_steps=4, base_guidance=5.0),
        Side(method="hybrid", handover="distilled-scheduler"),
    ]
    session.run("dog face", seeds=[1, 4], sides=sides)
    assert session.title(0) == "base, base steps 4: 4 base steps, 8 evaluations"
    assert session.title(1) == "hybrid, k=1: 1 base + 3 distilled steps, 4 evaluations"
    assert "seeds=[1, 4]" in session.code()


# State


def test_both_sides_stand_at_the_same_share_of_their_steps():
    for short, long in ((4, 20), (3, 7), (1, 1), (20, 20)):
        for position in range(long):
            frame = frame_at(position, short, long)
            assert (frame + 1) / short >= (position + 1) / long > frame / short - 1e-12
        assert frame_at(long, short, long) == short


@pytest.mark.parametrize("text", ["", "a", "3-1", "1, 1", "-1", "0-5000", "<b>"])
def test_seeds_are_refused(text):
    with pytest.raises(ValueError, match="seeds="):
        read_seeds(text)


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (5, 6, 7, 2), tuple(range(30))])
def test_seeds_are_read_as_written(seeds):
    assert read_seeds(write_seeds(seeds)) == seeds
    assert eval(re.search(r"seeds=(.*?), x_t", State(seeds=seeds).code("p"))[1]) in (
        list(seeds),
        range(seeds[0], seeds[-1] + 1),
    )


@pytest.mark.parametrize("text", ["1, 2, 3", "a, b, c, d", "1, 2, 3, -4"])
def test_regions_are_refused(text):
    with pytest.raises(ValueError, match="region="):
        read_box(text)


def test_looking_where_there_is_nothing_is_refused(session):
    for wrong, said in (
        ({"step": 9}, "step=9 must be from 0 to 4"),
        ({"seed": 77}, "seed=77 is not one of"),
        ({"box": (0, 0, 65, 1)}, r"box=\(0, 0, 65, 1\) must be"),
        ({"box": (3, 3, 3, 9)}, "box="),
        ({"words": list("abcdefg")}, "words has 7 entries"),
    ):
        with pytest.raises(ValueError, match=said):
            session.look(**wrong)
    for name in ("", "a.png", "b.trace"):
        with pytest.raises(ValueError, match="name="):
            session.save(name)
    with pytest.raises(ValueError, match="nothing to show or save yet"):
        Session().picture()


# Charts


def test_chart_draws_its_numbers():
    svg = chart([Line("a<b", [0.25, 1.0], [0.8, 0.0], "#ff0000")], at=0.25, label='say "hi"')
    root = ET.fromstring(svg)  # well-formed, so that nothing in it was left unescaped
    [points] = [element.get("points") for element in root.iter() if element.tag.endswith("polyline")]
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert x1 - x0 == pytest.approx(0.75 * (400 - 44 - 8), abs=0.1)
    assert y1 - y0 == pytest.approx(HEIGHT - 38 - 32, abs=0.1)  # from the top of the axis to its bottom
    [dot] = [element for element in root.iter() if element.tag.endswith("circle")]
    assert (float(dot.get("cx")), float(dot.get("cy"))) == (x0, y0)


# Widgets, without a kernel


@pytest.fixture
def explorer(emoji):
    explorer = dtviz.explore(emoji, prompt="dog face", seeds=range(3))
    yield explorer
    explorer._worker.shutdown()


def wait(explorer: Explorer) -> None:
    explorer._worker.submit(lambda: None).result(timeout=120)


def test_run_button_makes_what_run_makes(explorer):
    explorer.run_button.click()
    wait(explorer)
    assert explorer.status.value == ""
    assert (explorer.run_button.disabled, explorer.stop_button.disabled) == (False, True)
    assert explorer.step.value == explorer.step.max == 4
    before = explorer.panels[0].samples.value
    explorer.step.value = 0
    assert explorer.panels[0].samples.value != before
    assert "plan at step 1 of 4" in explorer.panels[0].step.value
    explorer.words.value = "<b>dog</b>"
    wait(explorer)
    assert "&lt;b&gt;dog&lt;/b&gt;</text>" in explorer.panels[0].timeline.value
    explorer._draw((0, 0, 32, 32))
    wait(explorer)
    assert "region alone" in explorer.panels[0].curve.value
    explorer._draw(None)
    assert "region alone" not in explorer.panels[0].curve.value


def test_stop_leaves_all_as_it_was(explorer):
    explorer.run()
    shown, pipe = explorer.code.value, explorer.session.pair.pipeline
    scheduler = pipe.scheduler
    going = threading.Event()
    watch = explorer._watch

    def slow(number, progress):
        going.set()
        explorer._stop.wait(timeout=60)
        watch(number, progress)

    explorer._watch = slow
    explorer.run_button.click()
    assert going.wait(timeout=60)
    assert explorer.run_button.disabled
    explorer.stop_button.click()
    wait(explorer)
    assert "Stopped" in explorer.status.value
    assert (explorer.run_button.disabled, explorer.code.value, pipe.scheduler) == (False, shown, scheduler)
    explorer._watch = watch
    explorer.run_button.click()
    wait(explorer)
    assert explorer.status.value == ""


def test_a_box_on_a_picture_that_is_not_square_is_where_it_was_drawn():
    """The picture keeps its shape in the middle of its place, and so do the axes on which boxes are drawn."""
    drawn = []
    panel = Panel(drawn.append)
    panel._mark((64, 32), None)
    panel.canvas.figure.canvas.draw()
    place, back = panel.axes.get_window_extent(), panel.axes.transData.inverted()
    assert (place.x0, place.x1, place.y0, place.y1) == pytest.approx((SIZE / 4, 3 * SIZE / 4, 0, SIZE))
    for corners in (((SIZE / 4, SIZE), (SIZE / 2, SIZE / 2)), ((0, SIZE), (SIZE, 0)), ((60, 60), (61, 61))):
        events = [SimpleNamespace(xdata=x, ydata=y) for x, y in map(back.transform, corners)]
        panel._select(*events)
    assert drawn == [(0, 0, 32, 16), (0, 0, 64, 32), None]


def test_other_figures_keep_their_backend(explorer):
    assert plt.get_backend().lower() == "agg"


def test_mistakes_are_said_in_one_line_and_escaped(explorer):
    for field, text, said in (
        ("seeds", "<b>", "seeds=&#x27;&lt;b&gt;&#x27; must be numbers"),
        ("prompt", " ", "prompt=&#x27; &#x27; must be a text"),
    ):
        widget = getattr(explorer, field)
        usual, widget.value = widget.value, text
        explorer.run_button.click()
        wait(explorer)
        assert said in explorer.status.value and 'role="alert"' in explorer.status.value
        widget.value = usual
    explorer.choices[0].numbers["steps"].value = "many"
    explorer.run_button.click()
    wait(explorer)
    assert "steps=&#x27;many&#x27; must be a whole number" in explorer.status.value


def test_what_a_method_has_no_use_for_is_disabled(explorer):
    [choice, _] = explorer.choices
    choice.method.value = "base"
    assert [name for name, field in choice.fields.items() if not field.disabled] == ["base_steps", "base_guidance"]
    choice.method.value = "hybrid"
    assert not any(field.disabled for field in choice.fields.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"source": "emoji-dmx"}, "emoji-dmx"),
        ({"sides": []}, "sides has 0 entries"),
        ({"sides": [{"method": "adaptive"}]}, "method='adaptive' is not one of"),
        ({"step": 3}, "step: there is nothing to look at yet"),
    ],
)
def test_explore_refuses(emoji, arguments, said):
    with pytest.raises(ValueError, match=said):
        dtviz.explore(**({"source": emoji} | arguments))
