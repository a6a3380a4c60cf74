"""The benchmarks' ratios in one table: `make bench` writes it from their CSVs into figures/bench/README.md.

Every row compares dtviz with what a user would do instead, measured in one process or one run.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FOLDER = Path("figures/bench")
# file, its columns for dtviz and for the alternative, and the text of its rows
ROWS = (
    ("capture", "with_capture", "without", "with capture, against without: {what}"),
    ("grid", "dtviz", "instead", "{what}"),
    ("dreamsim", "dtviz", "pair by pair", "one by one, against pair by pair: {what}"),
    ("hybrid", "hybrid", "distilled", "{what}"),
    ("decode", "dtviz", "instead", "{what}"),
    ("dataset", "two processes", "one process", "two processes, against one: {what}"),
    ("figures", "dtviz", "instead", "{what}"),
)  # fmt: skip


def ratios() -> list[str]:
    """Return the lines of the table. For a rate more is better, and the ratio is inverted."""
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
    """Return the lines of the table of exponents."""
    rows = [
        [row["what"], row["from"], row["to"], _seconds(row["s_from"]), _seconds(row["s_to"]), f"{row['exponent']:.2f}"]
        for row in _read("growth")
    ]
    return _lines(["", "from", "to", "time from", "to", "exponent"], rows)


def _read(name: str) -> list[dict]:
    return pd.read_csv(FOLDER / f"{name}.csv").to_dict("records")


def _lines(heads: list[str], rows: list[list]) -> list[str]:
    """Return a table in Markdown."""
    return [f"| {' | '.join(map(str, cells))} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _seconds(value: float) -> str:
    return f"{_number(value)} s" if value else ""


def _number(value: float) -> str:
    """Return three digits, or all of a whole number.

    >>> [_number(value) for value in (0.0123456, 1.00001, 12345.6, 99)]
    ['0.0123', '1.00', '12,346', '99']
    """
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def main() -> None:
    parts = [
        "# Benchmarks",
        "`make bench` wrote this. Each row is a ratio within one run: above 1, dtviz takes less.",
        "\n".join(ratios()),
        "How cost grows: the exponent of a power law, fitted to all sizes; 1 is proportional.",
        "\n".join(growth()),
        "Beside this page: `explorer.csv`, seconds in a browser; `kills.csv`, `determinism.csv`, `agreement.csv`, `coverage.csv`, `fd_bias.csv`.",
    ]
    (FOLDER / "README.md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
