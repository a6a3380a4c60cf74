"""The benchmarks' ratios in one table: `make bench` ends by writing it, from the CSV of each, into figures/bench/README.md and README.md.

Every row is dtviz against what a user would do instead, measured in one process or one run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

FOLDER = Path("figures/bench")
MARKS = "<!-- written by make bench -->\n", "<!-- until here -->\n"
# file, its columns for dtviz and for what it stands beside, and how its rows are told
ROWS = (
    ("capture", "with_capture", "without", "with capture, against without: {what}"),
    ("grid", "dtviz", "instead", "{what}"),
    ("dreamsim", "dtviz", "pair by pair", "one by one, against pair by pair: {what}"),
    ("hybrid", "hybrid", "student", "{what}"),
    ("memory", "hybrid_gib", "student_gib", "peak memory of a hybrid with {networks} of SDXL's networks in memory, against its student: {where}"),
    ("decode", "dtviz", "instead", "{what}"),
    ("dataset", "two processes", "one process", "two processes, against one: {what}"),
    ("figures", "dtviz", "instead", "{what}"),
)  # fmt: skip


def ratios() -> list[str]:
    """The lines of the table. What is counted a second is better when it is more, and its ratio turned round."""
    rows = []
    for name, ours, instead, told in ROWS:
        for row in _read(name):
            unit = row.get("unit", "GiB")
            more = unit.endswith("a second")
            ratio = row[ours] / row[instead] if more else row[instead] / row[ours]
            values = [f"{_number(row[column])} {unit}" for column in (ours, instead)]
            rows.append([told.format_map(row), *values, _number(ratio)])
    return _lines(["measured", "dtviz", "instead", "instead / dtviz"], rows)


def growth() -> list[str]:
    """The lines of the table of exponents."""
    rows = [
        [row["what"], row["from"], row["to"], _seconds(row["s_from"]), _seconds(row["s_to"]), f"{row['exponent']:.2f}"]
        for row in _read("growth")
    ]
    return _lines(["", "from", "to", "time from", "to", "exponent"], rows)


def tried() -> list[str]:
    """The lines of the table of what would not be quicker."""
    rows = [
        [row["what"], _seconds(row["usual"]), _seconds(row["other"]), f"{row['gain']:.2f}", _seconds(row["start"])]
        for row in _read("options")
    ]
    return _lines(["", "as it is", "the other way", "gain", "to begin with"], rows)


def _read(name: str) -> list[dict]:
    return pd.read_csv(FOLDER / f"{name}.csv").to_dict("records")


def _lines(heads: list[str], rows: list[list]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(map(str, cells))} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _seconds(value: float) -> str:
    return f"{_number(value)} s" if value else ""


def _number(value: float) -> str:
    """Three digits, and all of a whole number.

    >>> [_number(value) for value in (0.0123456, 1.00001, 12345.6, 99)]
    ['0.0123', '1.00', '12,346', '99']
    """
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def main() -> None:
    table = "\n".join(ratios())
    page = Path("README.md")
    start, end = MARKS
    inside = re.compile(f"(?<={re.escape(start)}).*(?={re.escape(end)})", flags=re.DOTALL)
    page.write_text(inside.sub(lambda _: f"{table}\n", page.read_text()))
    parts = [
        "# Benchmarks",
        "`make bench` wrote this. Each row is a ratio within one run: above 1, dtviz takes less.",
        table,
        "How cost grows: the exponent of a power law, fitted to all sizes; 1 is proportional.",
        "\n".join(growth()),
        "What was tried to be quicker, and left: it gains too little. (The text is one hundredth of a run.)",
        "\n".join(tried()),
        "Beside this page: `step.csv`, seconds and memory of SDXL's denoiser at full size; `sizes.csv`, what an evaluation takes;\n"
        "`explorer.csv`, seconds in a browser; `kills.csv`, `determinism.csv`, `agreement.csv`, `coverage.csv`, `fd_bias.csv`.",
    ]
    (FOLDER / "README.md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
