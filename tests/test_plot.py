"""dtviz.plot: the artists hold the data, nothing overlaps or is cut, and the style leaves nothing behind."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dtviz import plot
from dtviz.plot import curves as plot_curves
from dtviz.plot import grid as plot_grid
from dtviz.plot import look as plot_style
from dtviz.plot import tables as plot_tables
from dtviz.plot.look import colours_of


@pytest.fixture(autouse=True)
def closed_figures():
    mpl.use("Agg")
    yield
    plt.close("all")


def curves(student_level=0.3):
    base = np.linspace(0.6, 0.0, 10)  # .6 .533 .467 .4 .333 .267: within .3 at the sixth
    student = np.array([student_level, 0.2, 0.1, 0.0])
    frames = [
        pd.DataFrame({"model": name, "fraction": (np.arange(len(d)) + 1) / len(d), "distance": d, "low": d - 0.01})
        for name, d in (("base", base), ("emoji-dmd student", student))
    ]
    return pd.concat(frames, ignore_index=True).assign(high=lambda t: t["distance"] + 0.01)


def diversity(n=5, *, intervals=True, average=True):
    rng = np.random.default_rng(0)
    names = [f"prompt {i}" for i in range(n)] + ["Average"] * average
    rows = [(name, method, rng.uniform(0.1, 0.4)) for name in names for method in ("base", "distilled", "hybrid")]
    table = pd.DataFrame(rows, columns=["prompt", "method", "value"])
    return table.assign(low=table["value"] - 0.02, high=table["value"] + 0.03) if intervals else table


def overlaps(texts):
    """Pairs of texts whose boxes share more than a point's breadth."""
    fig = texts[0].figure
    fig.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    together = lambda a, b: min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1  # noqa: E731
    return [(s, t) for i, (s, a) in enumerate(boxes) for t, b in boxes[:i] if together(a, b)]


def test_style_restores_everything_also_after_an_error():
    before = dict(mpl.rcParams)
    with pytest.raises(KeyError), plot.style():
        assert mpl.rcParams["savefig.dpi"] == 300
        mpl.rcParams["lines.linewidth"] = 9
        raise KeyError
    assert dict(mpl.rcParams) == before


def test_similarity_draws_the_table():
    table = curves()
    ax = plot.plot_similarity_to_final(
        table.sample(frac=1, random_state=0), embedder="DreamSim", student="emoji-dmd student"
    )
    lines = {line.get_label(): line for line in ax.lines}
    for name, rows in table.groupby("model"):
        np.testing.assert_array_equal(lines[name].get_xdata(), rows["fraction"])
        np.testing.assert_array_equal(lines[name].get_ydata(), rows["distance"])
    bands = [collection.get_paths()[0].get_extents() for collection in ax.collections]
    assert {round(band.y1, 6) for band in bands} == {0.61, 0.31}
    assert ax.get_ylabel() == "DreamSim distance to the final image"
    assert ax.get_xlabel() == "fraction of inference steps"
    assert lines["base"].get_color() == plot.COLOURS["base"] != lines["emoji-dmd student"].get_color()


def test_similarity_marks_where_each_comes_within_the_students_first_level():
    ax = plot.plot_similarity_to_final(curves(), embedder="DreamSim")  # the student has the fewest steps
    level = next(line for line in ax.lines if line.get_label() == "_level")
    assert set(level.get_ydata()) == {0.3}
    assert [line.get_xdata()[0] for line in ax.lines if line.get_label() == "_within"] == [0.6, 0.25]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["base: 60% of steps", "emoji-dmd student: 25% of steps"]


def test_similarity_says_never_and_refuses_an_unknown_student():
    ax = plot.plot_similarity_to_final(curves(student_level=-0.1), embedder="DreamSim")
    assert ax.get_legend().get_texts()[0].get_text() == "base: never"
    with pytest.raises(ValueError, match=r"'dmd' is not a model of the table, which has \['base'"):
        plot.plot_similarity_to_final(curves(), embedder="DreamSim", student="dmd")


def test_plots_use_the_axes_they_are_given():
    axes = plt.subplots(2, 2)[1].ravel()
    before = plt.get_fignums()
    assert plot.plot_similarity_to_final(curves(), embedder="x", ax=axes[0]) is axes[0]
    assert plot.plot_image_grid(np.zeros((1, 1, 3, 4, 4)), ax=axes[1]) is axes[1]
    assert plot.plot_diversity_table(diversity(), ax=axes[2]) is axes[2]
    assert plot.plot_diversity_dots(diversity(), embedder="x", ax=axes[3]) is axes[3]
    assert plt.get_fignums() == before


@pytest.mark.parametrize("channels_last", [False, True])
def test_grid_shows_each_image_in_its_place(channels_last):
    images = np.random.default_rng(0).random((2, 4, 3, 6, 8)).astype(np.float32)
    shown = np.moveaxis(images, 2, -1)
    ax = plot.plot_image_grid(shown if channels_last else images, groups=[("left", 1), ("right", 3)])
    for image, (r, c) in zip(ax.images, np.ndindex(2, 4), strict=True):
        np.testing.assert_array_equal(image.get_array(), shown[r, c])
        assert image.get_interpolation() == "nearest"
    left = np.array([image.get_extent()[0] for image in ax.images]).reshape(2, 4)
    top = np.array([image.get_extent()[3] for image in ax.images]).reshape(2, 4)
    gaps = np.diff(left[0]) - 1
    assert (gaps > 0).all()
    assert gaps[0] > 2 * gaps[1] == pytest.approx(2 * gaps[2])  # groups stand apart
    assert (np.diff(top[:, 0]) > 6 / 8).all()  # rows do not touch; images keep their shape
    assert ax.get_aspect() == 1


def test_grid_labels_groups_captions_and_blanks():
    images = np.zeros((2, 4, 3, 4, 4))
    images[1, 2] = np.nan
    with plot.style():
        ax = plot.plot_image_grid(
            images,
            row_labels=["base", "a prompt with very many words in it"],
            column_labels=["25%", "100%"] * 2,
            groups=[("decoded $x_t$", 2), ("DT-Visualization", 2)],
            captions=[["step 1/20", "step 20/20"] * 2, ["1/4", "4/4"] * 2],
        )
        plot.footer(ax.figure, "emoji-dmd, seed 3")
        assert len(ax.images) == 7
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["25%", "100%"] * 2
        assert ax.get_yticklabels()[1].get_text().replace("\n", " ") == "a prompt with very many words in it"
        texts = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.figure._supxlabel]
        assert overlaps(texts) == []
        assert {"decoded $x_t$", "DT-Visualization", "step 20/20", "4/4"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 3, 4, 4)), {}, "images of shape"),
        (np.zeros((2, 2, 4, 8, 8)), {}, "images of shape"),
        (np.full((1, 1, 3, 4, 4), 255.0), {}, "uint8"),
        (np.full((1, 1, 3, 4, 4), -1.0), {}, r"\[-1, 1\]"),
        (np.zeros((2, 2, 3, 4, 4)), {"row_labels": ["a"]}, "row_labels cover 1, but the grid has 2"),
        (np.zeros((2, 2, 3, 4, 4)), {"column_labels": ["a"] * 3}, "column_labels"),
        (np.zeros((2, 2, 3, 4, 4)), {"groups": [("a", 3)]}, "groups cover 3"),
        (np.zeros((2, 2, 3, 4, 4)), {"captions": [["a", "b"]]}, "captions"),
    ],
)
def test_grid_refuses(images, options, message):
    with pytest.raises(ValueError, match=message):
        plot.plot_image_grid(images, **options)


@pytest.mark.parametrize("n", [1, 5, 20, 21, 35])
@pytest.mark.parametrize("average", [True, False])
def test_diversity_table_prints_every_number_once_and_the_best_bold(n, average):
    table = diversity(n, average=average)
    with plot.style():
        ax = plot.plot_diversity_table(table, title="Mean pairwise distance")
        texts = [text.get_text() for text in ax.texts]
        assert sorted(t for t in texts if t.startswith("0.")) == sorted(f"{value:.3f}" for value in table["value"])
        assert texts.count("±0.025") == len(table)
        bold = sorted(text.get_text() for text in ax.texts if text.get_weight() == "bold")
        assert bold == sorted(f"{value:.3f}" for value in table.groupby("prompt")["value"].max())
        assert [t for t in texts if t.startswith("prompt ")] == [f"prompt {i}" for i in range(n)]
        assert texts.count("Prompt") == (1 if n <= 20 else 2)
        assert overlaps(ax.texts) == []


def test_diversity_table_places_rows_in_order_with_the_average_last_below_a_rule():
    ax = plot.plot_diversity_table(diversity(5).iloc[::-1])  # here the average comes first
    at = {text.get_text(): text.get_position()[1] for text in ax.texts}
    order = ["Prompt", *(f"prompt {i}" for i in (4, 3, 2, 1, 0)), "Average"]
    assert sorted(order, key=at.get) == order
    rules = sorted(segment[0][1] for lines in ax.collections for segment in lines.get_segments())
    assert any(at["prompt 0"] < rule < at["Average"] for rule in rules)


def test_diversity_table_without_intervals_and_with_other_digits():
    ax = plot.plot_diversity_table(diversity(3, intervals=False), digits=1)
    assert not [text for text in ax.texts if "±" in text.get_text()]
    assert all(len(text.get_text()) == 3 for text in ax.texts if text.get_text().startswith("0."))


def test_dots_hold_each_prompt_and_the_average_with_its_interval():
    table = diversity(6)
    ax = plot.plot_diversity_dots(table, embedder="DreamSim", differences=["hybrid - base: +.012, p = .44"])
    for dots, (method, rows) in zip(ax.collections, table.groupby("method", sort=False), strict=True):
        prompts = rows[rows["prompt"] != "Average"]
        np.testing.assert_array_equal(np.asarray(dots.get_offsets())[:, 0], prompts["value"])
        assert mpl.colors.same_color(dots.get_facecolor()[0, :3], plot.COLOURS[method])
    mean = table[table["prompt"] == "Average"]
    np.testing.assert_array_equal([line.get_xdata() for line in ax.lines[::2]], mean[["low", "high"]])
    np.testing.assert_array_equal([line.get_xdata()[0] for line in ax.lines[1::2]], mean["value"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["base", "distilled", "hybrid"]
    assert ax.get_xlabel().splitlines() == ["mean pairwise DreamSim distance", "hybrid - base: +.012, p = .44"]


def test_footer_stays_inside_the_figure_and_below_the_axes():
    with plot.style():
        ax = plot.plot_similarity_to_final(curves(), embedder="DreamSim")
        plot.footer(ax.figure, "emoji-dmd, DreamSim, guidance 3, " * 8)
        ax.figure.canvas.draw()
        box = ax.figure._supxlabel.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= ax.figure.bbox.x1
        assert box.y1 <= ax.get_tightbbox().y0


def test_colours_are_fixed_for_methods_and_distinct_for_others():
    assert colours_of(["hybrid", "base"]) == [plot.COLOURS["hybrid"], plot.COLOURS["base"]]
    names = ["base", "emoji-dmd", "emoji-lcm", "emoji-turbo", "emoji-lightning"]
    assert len(set(colours_of(names))) == 5
    assert len(colours_of([f"model {i}" for i in range(20)])) == 20


def test_import_touches_no_setting_and_opens_no_figure():
    import importlib

    before = dict(mpl.rcParams)
    for module in (plot_style, plot_curves, plot_grid, plot_tables, plot):
        importlib.reload(module)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_figures_save_without_a_warning(tmp_path, suffix):
    with plot.style():
        ax = plot.plot_image_grid(np.zeros((1, 2, 3, 4, 4)), groups=[("$x_t$", 1), (r"$\hat{x}_0$ x̂0 ±", 1)])
        plot.footer(ax.figure, "emoji-dmd · 2 × 1")
        ax.figure.savefig(tmp_path / f"f.{suffix}")
    assert (tmp_path / f"f.{suffix}").stat().st_size > 1000


def test_plane_holds_both_measures_and_their_intervals():
    columns = ["method", "x", "x_low", "x_high", "y", "y_low", "y_high"]
    table = pd.DataFrame(
        [["base", 0.3, 0.2, 0.5, 0.9, 0.8, 1.0], ["re-noised", 0.1, 0.05, 0.15, 0.7, 0.6, 0.8]], columns=columns
    )
    with plot.style():
        ax = plot.plot_plane(table, x_label="distance", y_label="accuracy")
    drawn = {bar.get_label(): bar for bar in ax.containers}
    assert list(drawn) == ["base", "re-noised"]
    point, _, (across, up) = drawn["base"]
    np.testing.assert_allclose(point.get_xydata(), [[0.3, 0.9]])
    np.testing.assert_allclose(across.get_segments()[0][:, 0], [0.2, 0.5])
    np.testing.assert_allclose(up.get_segments()[0][:, 1], [0.8, 1.0])
    assert point.get_color() == plot.COLOURS["base"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("distance", "accuracy")


def test_sweep_draws_a_line_and_a_band_for_each_series_and_the_references():
    columns = ["series", "x", "value", "low", "high"]
    rows = [["hybrid", 2, 0.3, 0.2, 0.4], ["hybrid", 1, 0.2, 0.1, 0.3], ["matched", 1, 0.5, 0.4, 0.6]]
    with plot.style():
        ax = plot.plot_sweep(
            pd.DataFrame(rows, columns=columns), x_label="k", y_label="distance", reference={"base": 0.4}
        )
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["base", "hybrid", "matched"]
    np.testing.assert_allclose(lines["hybrid"].get_xydata(), [[1, 0.2], [2, 0.3]])
    assert set(lines["base"].get_ydata()) == {0.4}
    assert len(ax.collections) == 2
