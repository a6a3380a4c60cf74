"""dtviz.plot: the artists hold the data, no text overlaps or is small, and the style restores all settings."""

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


def diversity(n=5, *, average=True):
    names = [f"prompt {i}" for i in range(n)] + ["Average"] * average
    index = pd.MultiIndex.from_product([names, ["base", "distilled", "hybrid"]], names=["prompt", "method"])
    value = np.random.default_rng(0).uniform(0.1, 0.4, len(index))
    return pd.DataFrame({"value": value, "low": value - 0.02, "high": value + 0.03}, index).reset_index()


def plane(points):
    rows = [(method, x, x - 0.1, x + 0.2, y, y - 0.1, y + 0.1) for method, (x, y) in points.items()]
    return frame("method x x_low x_high y y_low y_high", *rows)


def bars(ax):
    return [segment.tolist() for collection in ax.collections for segment in collection.get_segments()]


def check_texts(figure):
    """No text is under 7 points or cut by the figure, and no two share more than a point's breadth."""
    figure.canvas.draw()
    [ax] = figure.axes
    texts = [*figure.texts, *ax.texts, ax._left_title, *(ax.get_legend().texts if ax.get_legend() else [])]
    if ax.axison:
        ticks = [tick for axis in (ax.xaxis, ax.yaxis) for tick in axis._update_ticks()]  # those in view
        texts += [ax.xaxis.label, ax.yaxis.label, *(tick.label1 for tick in ticks), *(tick.label2 for tick in ticks)]
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


def test_similarity_draws_the_table_and_says_when_each_model_reaches_the_level():
    table = similarity()
    ax = plot.plot_similarity_to_final(table.sample(frac=1, random_state=0), embedder="DreamSim")
    assert [line.get_label() for line in ax.lines[:2]] == ["base: 60% of steps", "distilled: 25% of steps"]
    for line, name in zip(ax.lines, ("base", "distilled"), strict=False):
        np.testing.assert_array_equal(line.get_xydata(), table[table["model"] == name].iloc[:, 1:3])
        assert line.get_color() == plot.COLOURS[name]
    bands = [band.get_paths()[0].get_extents().y1 for band in ax.collections[:2]]
    assert (bands, ax.lines[2].get_ydata()) == (pytest.approx([0.61, 0.31]), [0.3, 0.3])
    ax = plot.plot_similarity_to_final(similarity(first_distance=-0.1), embedder="EfficientNet-Lite0 cosine")
    assert ax.get_legend().texts[0].get_text() == "base: never"
    plot.caption(ax.figure, "emoji-dmd, DreamSim, guidance 3, " * 8)
    check_texts(ax.figure)


def test_sweep_draws_lines_references_and_bands_within_the_limits():
    table = frame("series x value low high", ["hybrid", 2, 0.9, 0.8, 1.1], ["hybrid", 1, 0.2, -0.1, 0.3])
    ax = plot.plot_sweep(table, x_label="k", y_label="accuracy", reference={"base": 0.4}, limits=(0, 1))
    assert [line.get_label() for line in ax.lines] == ["base", "hybrid"]
    assert ax.lines[1].get_xydata().tolist() == [[1, 0.2], [2, 0.9]]
    assert ax.collections[0].get_paths()[0].get_extents().intervaly.tolist() == [0, 1]
    assert ax.get_ylim() == (0, 1)
    check_texts(ax.figure)
    ax = plot.plot_accuracy_by_step(frame("classifier step accuracy", ["x0", 1, 0.5], ["x0", 2, 1], ["other", 1, 0.2]))
    assert {line.get_label(): line.get_ydata().tolist() for line in ax.lines} == {"x0": [0.5, 1], "other": [0.2]}


def test_plane_holds_points_intervals_and_labels():
    table = plane({"base": (0.05, 0.95), "hybrid, k = 2": (0.3, 0.7), "re-noised": (0.5, 0.5)})
    ax = plot.plot_plane(table, x_label="distance", y_label="accuracy", x_limits=(0, np.inf), y_limits=(0, 1))
    np.testing.assert_array_equal([line.get_xydata()[0] for line in ax.lines], table[["x", "y"]])
    np.testing.assert_allclose(bars(ax)[:2], [[[0, 0.95], [0.25, 0.95]], [[0.05, 0.85], [0.05, 1]]])
    assert [line.get_color() for line in ax.lines[:2]] == [plot.COLOURS["base"], plot.COLOURS["hybrid"]]
    assert (ax.get_xlim()[0], ax.get_ylim()[1]) == (0, 1)
    # Labels of crowded points stay inside the axes and overlap no point and no label.
    points = {f"method {i}": (0.3 + 0.01 * i, 0.98 + 0.002 * i) for i in range(8)} | {"base": (0.6, 0.4)}
    ax = plot.plot_plane(plane(points), x_label="distance", y_label="accuracy")
    check_texts(ax.figure)
    for box in map(Text.get_window_extent, ax.texts):
        assert ax.bbox.padded(1).count_contains(box.corners()) == 4
        assert box.count_contains(ax.transData.transform(list(points.values()))) == 0


def test_effects_and_rates_draw_values_and_intervals():
    rows = ("both", "smile", 2.0, 1.0, 3.0), ("both", "age", -1.0, -np.inf, 0.5), ("base", "smile", 0.5, 0.0, np.inf)
    ax = plot.plot_effects(frame("row series value low high", *rows), x_label="score")
    assert [line.get_xydata().tolist() for line in ax.lines[1:]] == [[[2, -0.125], [0.5, 0.875]], [[-1, 0.125]]]
    assert [[x for x, _ in segment] for segment in bars(ax)] == [[1, 3], [0, 3], [-1, 0.5]]  # infinite: to the edge
    check_texts(ax.figure)
    rows = ["base", "asked for", 0.1, -0.05, 0.25], ["base", "not asked for", 0.02, 0.01, 0.03]
    ax = plot.plot_rates(frame("model condition value low high", *rows))  # in percent, within what is possible
    assert [line.get_xdata().tolist() for line in ax.lines[1:]] == [[10], [2]]
    assert [[x for x, _ in segment] for segment in bars(ax)] == [[0, 25], [1, 3]]


@pytest.mark.parametrize("channels_last", [False, True])
def test_grid_shows_each_image_in_its_place(channels_last):
    images = np.random.default_rng(0).random((2, 4, 3, 6, 8)).astype(np.float32)
    pixels = np.moveaxis(images, 2, -1)
    ax = plot.plot_image_grid(pixels if channels_last else images, groups=[("left", 1), ("right", 3)])
    for image, place in zip(ax.images, np.ndindex(2, 4), strict=True):
        np.testing.assert_array_equal(image.get_array(), pixels[place])
    left, _, _, top = np.moveaxis(np.reshape([image.get_extent() for image in ax.images], (2, 4, 4)), -1, 0)
    gaps = np.diff(left[0]) - 1
    assert gaps[0] > 2 * gaps[1] == pytest.approx(2 * gaps[2])  # a gap between the groups
    assert (gaps > 0).all() and (np.diff(top[:, 0]) > 6 / 8).all() and ax.get_aspect() == 1  # images do not touch


def test_grid_labels_groups_captions_and_blanks():
    images = np.zeros((2, 4, 3, 4, 4))
    images[1, 2] = np.nan
    labels = {"row_labels": ["base", "a $5 prompt with very many words"], "column_labels": ["25%", "100%"] * 2}
    captions, groups = [["step 1/20", "step 20/20"] * 2, ["1/4", "4/4"] * 2], [("decoded $x_t$", 2), ("x0", 2)]
    ax = plot.plot_image_grid(images, groups=groups, captions=captions, **labels)
    assert len(ax.images) == 7
    assert ax.get_yticklabels()[1].get_text().replace("\n", " ") == r"a \$5 prompt with very many words"
    assert {"decoded $x_t$", "x0", "step 20/20", "4/4"} <= {text.get_text() for text in ax.texts}
    check_texts(ax.figure)


def test_grid_refuses_what_does_not_fit():
    for shape, value, options, message in (
        ((2, 2, 4, 8, 8), 0, {}, "images of shape"),
        ((1, 1, 3, 4, 4), 255, {}, "uint8"),
        ((2, 2, 3, 4, 4), 0, {"row_labels": ["a"]}, r"row_labels cover \(1,\), but the grid has \(2,\)"),
        ((2, 2, 3, 4, 4), 0, {"captions": [["a", "b"]]}, r"captions cover \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            plot.plot_image_grid(np.full(shape, value), **options)


def test_case_draws_x0_the_box_and_the_posteriors():
    posteriors = {"cat": [0.1, 0.5, 0.97, 1.0, 0.02], "pig": [0.9, 0.5, 0.03, 0.0, 0.98]}
    case = {"steps": [0, 2, 3], "mark": 2, "box": (1, 2, 5, 14), "posteriors": posteriors, "threshold": 0.9}
    axes = plt.subplots(1, 6)[1]
    plot.plot_case(np.zeros((3, 3, 8, 16)), np.ones((3, 8, 16)), label="cat and pig", axes=axes, **case)
    assert [ax.get_xlabel() for ax in axes[:5]] == ["step 1", "step 3", "step 4", "", "final image"]
    assert [(len(ax.images), len(ax.patches)) for ax in axes[:5]] == [(1, 0), (1, 1), (1, 0), (0, 0), (1, 0)]
    assert (16 * axes[1].patches[0].get_bbox().get_points()).tolist() == [[2, 1], [14, 5]]  # an image is 1 wide
    cat, final, *_, threshold, mark = axes[5].lines
    np.testing.assert_array_equal(cat.get_xydata(), [[1, 0.1], [2, 0.5], [3, 0.97], [4, 1.0]])
    np.testing.assert_array_equal(final.get_xydata(), [[5, 0.02]])
    assert (threshold.get_ydata()[0], mark.get_xdata()[0]) == (0.9, 3)  # step index 2 is the third


@pytest.mark.parametrize(("n", "average"), [(1, True), (20, False), (21, True), (35, True), (36, False)])
def test_diversity_table_prints_every_number_once_and_the_best_bold(n, average):
    table = diversity(n, average=average)
    ax = plot.plot_diversity_table(table, title="Mean pairwise distance")
    texts = [text.get_text() for text in ax.texts]
    assert sorted(t for t in texts if t.startswith("0.")) == sorted(f"{value:.3f}" for value in table["value"])
    assert texts.count("±0.025") == len(table)
    bold = sorted(text.get_text() for text in ax.texts if text.get_weight() == "bold")
    assert bold == sorted(f"{value:.3f}" for value in table.groupby("prompt")["value"].max())
    assert texts.count("prompt") == (1 if n <= 20 else 2)
    check_texts(ax.figure)


def test_tables_keep_the_order_with_the_average_last_below_a_rule():
    ax = plot.plot_diversity_table(diversity(2)[["prompt", "method", "value"]].iloc[::-1])  # the average comes first
    at = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert at["prompt"] < at["prompt 1"] < at["prompt 0"] < at["Average"]
    assert any(at["prompt 0"] < segment[0][1] < at["Average"] for segment in bars(ax))
    assert not [text for text in at if "±" in text]
    ax = plot.plot_table(pd.DataFrame({"FD": ["0.5", "1"], "concept\naccuracy": ["0.99 ±0.01", "1"]}, ["base", "skip"]))
    assert {text.get_text() for text in ax.texts} >= {"FD", "0.5", "concept\naccuracy", "0.99", "±0.01", "skip"}


def test_dots_hold_each_prompt_and_the_average_with_its_interval():
    table = diversity(6)
    table.loc[table["prompt"] == "Average", "low"] = -0.1
    ax = plot.plot_diversity_dots(table, embedder="DreamSim", differences=["hybrid - base: +.012, p = .44"])
    check_texts(ax.figure)
    mean = table[table["prompt"] == "Average"]
    for dots, (method, rows) in zip(ax.collections, table.drop(mean.index).groupby("method"), strict=True):
        np.testing.assert_allclose(np.sort(dots.get_offsets()[:, 0]), np.sort(rows["value"]))
        assert mpl.colors.same_color(dots.get_facecolor()[0, :3], plot.COLOURS[method])
    np.testing.assert_array_equal([line.get_xdata() for line in ax.lines[::2]], mean[["low", "high"]].clip(0))
    np.testing.assert_array_equal([line.get_xdata()[0] for line in ax.lines[1::2]], mean["value"])


def test_figures_use_the_given_axes_and_are_the_same_each_time(tmp_path):
    for name in "ab":
        figure, ax = plt.subplots()
        assert plot.plot_diversity_dots(diversity(20), embedder="x̂0 $x_t$ ±", ax=ax) is ax
        figure.savefig(tmp_path / f"{name}.pdf", metadata={"CreationDate": None})
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
