"""The benchmarks in one page: `make bench` writes it from their CSVs into figures/bench/README.md."""

import pandas as pd

from .measure import FOLDER


def ratios() -> str:
    """Return the rows of dtviz beside what a user would do instead, each measured in one process or one run."""
    tables = [_read(name) for name in ("costs", "dreamsim", "dataset")]
    rows = [
        (row["what"], *(f"{number(row[side])} {row['unit']}" for side in ("dtviz", "instead")), number(row["ratio"]))
        for row in pd.concat(tables).to_dict("records")
    ]
    return markdown(("measured", "dtviz", "instead", "instead / dtviz"), rows)


def host() -> str:
    """Return the rows of processor time."""
    rows = [(row["what"], number(row["ratio"]), row["asked"]) for row in _read("host").to_dict("records")]
    return markdown(("processor time of the host", "beside the plain call", "asked at most"), rows)


def growth() -> str:
    """Return the rows of exponents."""
    rows = []
    for row in _read("growth").to_dict("records"):
        seconds = [f"{number(row[side])} s" for side in ("s_from", "s_to")]
        rows.append((row["what"], row["from"], row["to"], *seconds, f"{row['exponent']:.2f}"))
    return markdown(("", "from", "to", "time from", "to", "exponent"), rows)


def markdown(heads: tuple, rows: list[tuple]) -> str:
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (heads, ["---"] * len(heads), *rows))


def number(value: float) -> str:
    """Return three digits, or all of a whole number.

    >>> [number(value) for value in (0.0123456, 1.00001, 12345.6, 99)]
    ['0.0123', '1.00', '12,346', '99']
    """
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:#.3g}"


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")


def main() -> None:
    parts = [
        "# Benchmarks",
        "`make bench` wrote this on two CPU cores. Each row is a ratio within one run: above 1, dtviz takes less.",
        ratios(),
        "A network with SDXL's number of modules at tiny width, on one CPU thread:",
        host(),
        "How cost grows: the exponent of a power law, fitted to all sizes; 1 is proportional.",
        growth(),
        "Beside this page: `explorer.csv`, seconds in a browser; `determinism.csv`, `agreement.csv`, `coverage.csv`, `fd_bias.csv`;"
        " and once `make gpu` has run on a GPU, `gpu.csv`.",
    ]
    (FOLDER / "README.md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
