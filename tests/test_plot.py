"""dtviz.plot: the artists hold the data, every text is readable where it stands, and the style restores all settings."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from dtviz import plot
from dtviz.plot.style import colours_of


@pytest.fixture(autouse=True)
def print_style():
    with plot.style():
        yield
    plt.close("all")


def frame(columns, *rows):
    return pd.DataFrame(rows, columns=columns.split())


def similarity(first_distance=0.3):
    """base has .6 .533 .467 .4 .333 .267 ...: within .3 at its sixth of ten steps."""
    distances = {"base": np.linspace(0.6, 0, 10), "distilled": np.array([first_distance, 0.2, 0.1, 0])}
    rows = [(name, (i + 1) / len(d), x, x - 0.01, x + 0.01) for name, d in distances.items() for i, x in enumerate(d)]
    return frame("model fraction distance low high", *rows)


METHODS = ("base", "distilled", "hybrid")


def diversity(n=5, *, average=True, methods=METHODS):
    names = [f"prompt {i}" for i in range(n)] + ["Average"] * average
    index = pd.MultiIndex.from_product([names, methods], names=["prompt", "method"])
    value = np.random.default_rng(0).uniform(0.1, 0.4, len(index))
    return pd.DataFrame({"value": value, "low": value - 0.02, "high": value + 0.03}, index).reset_index()


SWEEP = frame("series x value low high", ["hybrid", 2, 0.9, 0.8, 1.1], ["hybrid", 1, 0.2, -0.1, 0.3])
PLANE = frame("method x value low high", ["base", 40, 0.3, 0.28, 0.32], ["hybrid", 4, 0.05, -0.02, 0.1])
EFFECTS = frame("row value low high", ["on in the base", 2.0, 1.0, 3.0], ["on in both", -1.0, -2.0, 0.5])
CURVES = {"cat face": [0.1, 0.5, 0.97, 1.0, 0.02], "jack o lantern": [0.9, 0.5, 0.03, 0.0, 0.98]}
CASE = {"steps": [0, 2, 3], "mark": 2, "box": (1, 2, 5, 14), "posteriors": CURVES, "threshold": 0.9, "columns": 5}
CELLS = pd.DataFrame({"FD": ["0.5", "1"], "concept\naccuracy": ["0.99 ±0.01", "1"]}, ["base", "skip"])
GRID = {"row_labels": ["base", "a $5 prompt with very many words"], "column_labels": ["25%", "100%"] * 5}
GRID |= {"groups": [("decoded $x_t$", 5), ("predicted x0", 5)], "captions": [["step 1/20", "step 20/20"] * 5] * 2}
LONG = ("base", "hybrid σ, k = 2, coarser", "distilled, particles 0.3")


def images(*shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


def draw_case(x0, final):
    axes = plt.subplots(1, 2, figsize=(plot.WIDTH, 1.2), width_ratios=[6, 2.2])[1]
    plot.plot_case(x0, final, label="base: cat, pig, seed 3", axes=axes, **CASE)
    return axes


FIGURES = {
    "similarity": lambda: plot.plot_similarity_to_final(similarity()),
    "sweep": lambda: plot.plot_sweep(SWEEP, x_label="k, steps taken by the base", y_label="mean pairwise distance"),
    "plane": lambda: plot.plot_plane(PLANE, x_label="denoiser evaluations", y_label="mean pairwise distance"),
    "effects": lambda: plot.plot_effects(EFFECTS, x_label="gain over no control"),
    "case": lambda: draw_case(images(3, 3, 8, 16), images(3, 8, 16))[0],
    "grid": lambda: plot.plot_image_grid(images(2, 10, 3, 4, 4), **GRID),
    "two rows": lambda: plot.plot_image_grid(images(2, 12, 3, 4, 4), row_labels=["dog", "cat"], groups=[("Base", 12)]),
    "diversity table": lambda: plot.plot_diversity_table(diversity(36), title="Mean pairwise distance"),
    "table": lambda: plot.plot_table(CELLS, title="emoji-dmd"),
    "dots": lambda: plot.plot_diversity_dots(diversity(6, methods=LONG), differences=["hybrid - base: +.012, p = .4"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_readable_where_it_stands(name):
    """At the printed width: 7 points or more, inside the figure, no two on each other, no label longer than its axis."""
    figure = FIGURES[name]().figure
    plot.caption(figure, "emoji-dmd, 36 prompts x 100 seeds, full profile, guidance 3. " * 3)
    assert figure.get_figwidth() <= plot.WIDTH + 1e-6
    figure.canvas.draw()
    texts = [figure._supxlabel]
    for ax in figure.axes:
        assert min(ax.bbox.size) > 20, "the axes collapsed"
        texts += [*ax.texts, ax._left_title, ax.title]
        texts += [*ax.get_legend().texts, ax.get_legend().get_title()] if ax.get_legend() else []
        if not ax.axison:
            continue
        for axis, length in ((ax.xaxis, ax.bbox.width), (ax.yaxis, ax.bbox.height)):
            ticks = axis._update_ticks()  # those in view
            texts += [axis.label, *(tick.label1 for tick in ticks), *(tick.label2 for tick in ticks)]
            assert max(axis.label.get_window_extent().size * (axis is ax.xaxis, axis is ax.yaxis)) <= length + 1
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [Text.get_window_extent(text) for text in texts]
    assert min(text.get_fontsize() for text in texts) >= 7
    for i, box in enumerate(boxes):
        assert figure.bbox.padded(2).count_contains(box.corners()) == 4, texts[i]
        assert box.padded(-1).count_overlaps(boxes[:i]) == 0, texts[i]


def test_style_restores_all_settings_and_methods_keep_their_colours():
    before = dict(mpl.rcParams)
    with pytest.raises(KeyError), plot.style():
        mpl.rcParams["lines.linewidth"] = 9
        raise KeyError
    assert dict(mpl.rcParams) == before
    assert colours_of(["hybrid", "base"]) == [plot.COLOURS["hybrid"], plot.COLOURS["base"]]
    assert len(set(colours_of(["base", "emoji-dmd", "emoji-lcm", "emoji-turbo", "emoji-lightning"]))) == 5


def test_a_caption_makes_room_for_itself_once():
    figure = plt.figure(figsize=(3, 2))
    for _ in range(2):
        plot.caption(figure, "word " * 40)  # 199 letters in lines of 51
        assert figure.get_figheight() == pytest.approx(2 + 4 * 0.13)


def test_similarity_draws_the_table_and_says_when_each_model_reaches_the_level():
    table = similarity()
    ax = plot.plot_similarity_to_final(table.sample(frac=1, random_state=0))
    assert [line.get_label() for line in ax.lines[:2]] == ["base: 60% of steps", "distilled: 25% of steps"]
    for line, name in zip(ax.lines, ("base", "distilled"), strict=False):
        np.testing.assert_array_equal(line.get_xydata(), table[table["model"] == name].iloc[:, 1:3])
        assert line.get_color() == plot.COLOURS[name]
    bands = [band.get_paths()[0].get_extents() for band in ax.collections[:2]]
    assert [band.y1 for band in bands] == pytest.approx([0.61, 0.31]) and bands[0].y0 == 0  # no distance below 0
    assert ax.lines[2].get_ydata() == [0.3, 0.3]
    ax = plot.plot_similarity_to_final(similarity(first_distance=-0.1))
    assert ax.get_legend().texts[0].get_text() == "base: never"


def test_sweep_draws_lines_references_and_bands_within_the_limits():
    ax = plot.plot_sweep(SWEEP, x_label="k", y_label="accuracy", reference={"base": 0.4}, limits=(0, 1))
    assert [line.get_label() for line in ax.lines] == ["base", "hybrid"]
    assert ax.lines[1].get_xydata().tolist() == [[1, 0.2], [2, 0.9]]
    assert ax.collections[0].get_paths()[0].get_extents().intervaly.tolist() == [0, 1]
    assert ax.get_ylim() == (0, 1)


def bars(ax):
    return [segment.tolist() for collection in ax.collections for segment in collection.get_segments()]


def test_plane_and_effects_hold_points_intervals_and_names():
    ax = plot.plot_plane(PLANE, x_label="evaluations", y_label="distance")
    np.testing.assert_array_equal([line.get_xydata()[0] for line in ax.lines], PLANE[["x", "value"]])
    assert bars(ax) == [[[40, 0.28], [40, 0.32]], [[4, 0], [4, 0.1]]]  # none below 0
    assert [line.get_color() for line in ax.lines] == [plot.COLOURS[name] for name in ("base", "hybrid")]
    assert [text.get_text() for text in ax.texts] == ["base", "hybrid"]
    ax = plot.plot_effects(EFFECTS, x_label="score")
    assert ax.lines[1].get_xydata().tolist() == [[2, 0], [-1, 1]]
    assert bars(ax) == [[[1, 0], [3, 0]], [[-2, 1], [0.5, 1]]]
    assert [label.get_text() for label in ax.get_yticklabels()] == EFFECTS["row"].tolist()


def test_grid_shows_each_image_in_its_place():
    shown = images(2, 4, 3, 6, 8)
    ax = plot.plot_image_grid(shown, groups=[("left", 1), ("right", 3)])
    for image, place in zip(ax.images, np.ndindex(2, 4), strict=True):
        np.testing.assert_array_equal(image.get_array(), np.moveaxis(shown[place], 0, -1))
    left, _, _, top = np.moveaxis(np.reshape([image.get_extent() for image in ax.images], (2, 4, 4)), -1, 0)
    gaps = np.diff(left[0]) - 1
    assert gaps[0] > 2 * gaps[1] == pytest.approx(2 * gaps[2])  # a gap between the groups
    assert (gaps > 0).all() and (np.diff(top[:, 0]) > 6 / 8).all() and ax.get_aspect() == 1  # images do not touch


def test_grid_labels_and_blanks():
    shown = images(2, 10, 3, 4, 4)
    shown[1, 2] = np.nan
    ax = plot.plot_image_grid(shown, **GRID)
    assert len(ax.images) == 19
    assert ax.get_yticklabels()[1].get_text().replace("\n", " ") == r"a \$5 prompt with very many words"
    assert {"decoded $x_t$", "predicted x0", "step 20/20"} <= {text.get_text() for text in ax.texts}


def test_grid_refuses_what_does_not_fit():
    for shape, value, options, message in (
        ((2, 2, 4, 8, 8), 0, {}, "images of shape"),
        ((1, 1, 3, 4, 4), 255, {}, "uint8"),
        ((2, 2, 3, 4, 4), 0, {"row_labels": ["a"]}, "number of labels"),
        ((2, 2, 3, 4, 4), 0, {"groups": [("a", 3)]}, "could not be broadcast"),
    ):
        with pytest.raises(ValueError, match=message):
            plot.plot_image_grid(np.full(shape, value), **options)


def test_case_draws_x0_the_box_and_the_posteriors():
    left, right = draw_case(np.zeros((3, 3, 8, 16)), np.ones((3, 8, 16)))
    assert [text.get_text() for text in left.texts] == ["step 1", "step 3", "step 4", "", "", "final"]
    assert [image.get_extent()[0] for image in left.images] == pytest.approx([0, 1.06, 2.12, 5.3])  # the final one last
    [box] = left.patches
    np.testing.assert_allclose(box.get_bbox().get_points(), [[1.06 + 2 / 16, 1 / 16], [1.06 + 14 / 16, 5 / 16]])
    cat, final, *_, threshold, mark = right.lines
    np.testing.assert_array_equal(cat.get_xydata(), [[1, 0.1], [2, 0.5], [3, 0.97], [4, 1.0]])
    np.testing.assert_array_equal(final.get_xydata(), [[5, 0.02]])
    assert (threshold.get_ydata()[0], mark.get_xdata()[0]) == (0.9, 3)  # step index 2 is the third
    assert [text.get_text() for text in right.texts] == list(CURVES)  # the higher one at the end above


def test_diversity_table_prints_every_number_once_and_the_best_bold():
    table = diversity(4)
    texts = plot.plot_diversity_table(table).texts
    words = [text.get_text() for text in texts]
    assert sorted(t for t in words if t.startswith("0.")) == sorted(f"{value:.3f}" for value in table["value"])
    assert words.count("±0.025") == len(table) and words.count("prompt") == 1
    bold = sorted(text.get_text() for text in texts if text.get_weight() == "bold")
    assert bold == sorted(f"{value:.3f}" for value in table.groupby("prompt")["value"].max())


def test_tables_keep_the_order_with_the_average_last_below_a_rule():
    ax = plot.plot_diversity_table(diversity(2)[["prompt", "method", "value"]].iloc[::-1])  # the average comes first
    at = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert at["prompt"] < at["prompt 1"] < at["prompt 0"] < at["Average"]
    assert any(at["prompt 0"] < segment[0][1] < at["Average"] for segment in bars(ax))
    assert not [text for text in at if "±" in text]
    texts = {text.get_text() for text in plot.plot_table(CELLS).texts}
    assert texts >= {"FD", "0.5", "concept\naccuracy", "0.99", "±0.01", "skip"}


def test_dots_hold_each_prompt_and_the_average_with_its_interval():
    table = diversity(6)
    table.loc[table["prompt"] == "Average", "low"] = -0.1
    ax = plot.plot_diversity_dots(table)
    ax.figure.canvas.draw()
    mean = table[table["prompt"] == "Average"]
    for dots, (method, rows) in zip(ax.collections, table.drop(mean.index).groupby("method"), strict=True):
        np.testing.assert_allclose(np.sort(dots.get_offsets()[:, 0]), np.sort(rows["value"]))
        assert mpl.colors.same_color(dots.get_facecolor()[0, :3], plot.COLOURS[method])
    np.testing.assert_array_equal([line.get_xdata() for line in ax.lines[::2]], mean[["low", "high"]].clip(0))
    np.testing.assert_array_equal([line.get_xdata()[0] for line in ax.lines[1::2]], mean["value"])


def test_figures_use_the_given_axes_and_are_the_same_each_time(tmp_path):
    for name in "ab":
        figure, ax = plt.subplots()
        assert plot.plot_diversity_dots(diversity(20), x_label="x̂0 $x_t$ ±", ax=ax) is ax
        figure.savefig(tmp_path / f"{name}.pdf", metadata={"CreationDate": None})
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
