"""The benchmarks' ratios in one table: `make bench` ends by writing figures/bench/README.md from the CSV of each.

Every row is dtviz against what a user would do instead, measured in one process or one run.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FOLDER = Path("figures/bench")
# file: (its columns for dtviz, for what it stands beside, and for the ratio as the table has it)
ROWS = {
    "capture": ("with_capture_s", "denoiser_s"),
    "grid": ("dtviz", "instead"),
    "dreamsim": ("dtviz", "pair by pair"),
    "hybrid": ("hybrid", "student"),
    "decode": ("dtviz", "instead"),
    "dataset": ("two processes", "one process"),
    "figures": ("dtviz", "instead"),
}


def main() -> None:
    lines = [
        "# Benchmarks",
        "",
        "`make bench` wrote this. Settings are in the first column; each row is a ratio within one run.",
        "",
    ]
    lines += ["| what | unit | dtviz | instead | instead / dtviz |", "|---|---|---|---|---|"]
    for name, (ours, instead) in ROWS.items():
        path = FOLDER / f"{name}.csv"
        if not path.exists():
            continue
        for row in pd.read_csv(path).to_dict("records"):
            a, b = row[ours], row[instead]
            lines.append(f"| {row['what']} | {row.get('unit', 's')} | {a:.4g} | {b:.4g} | {b / a:.3g} |")
    lines += ["", "How cost grows (exponent of a power law, fitted):", ""]
    lines += ["| what | from | to | s | s | exponent |", "|---|---|---|---|---|---|"]
    for row in pd.read_csv(FOLDER / "growth.csv").to_dict("records"):
        lines.append(
            f"| {row['what']} | {row['from']} | {row['to']} | {row['s_from']:.3g} | {row['s_to']:.3g} | {row['exponent']:.2f} |"
        )
    (FOLDER / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
