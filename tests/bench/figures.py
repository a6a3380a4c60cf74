"""All notebooks at the quick profile, cold and warm: `make bench` writes figures/bench/figures.csv.

Cold makes everything, warm reads from the store what the first made and draws again; for a ratio of the two only, both run
with as many notebooks at once as there are cores. `--alone`: a third run has them one after the other, on a store of its own.
`--keep FOLDER`: the figures, their store and the executed notebooks stay there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .measure import publish, timed


def run(folder: Path, store: str, *options: str) -> float:
    """Seconds of `python -m dtviz figures` into `folder`."""
    command = [sys.executable, "-m", "dtviz", "figures", "--out", str(folder / "figures"), *options]
    environment = os.environ | {"DTVIZ_STORE": str(folder / store)}
    return timed(lambda: subprocess.run(command, env=environment, check=True))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(sys.argv[sys.argv.index("--keep") + 1]) if "--keep" in sys.argv else Path(name)
        cold, warm = run(folder, "store"), run(folder, "store")
        rows = [
            {
                "what": "make figures: warm, against cold",
                "unit": "s",
                "dtviz": warm,
                "instead": cold,
                "ratio": cold / warm,
            }
        ]
        if "--alone" in sys.argv:
            alone = run(folder, "other", "--jobs", "1")
            what = f"make figures, cold: {os.cpu_count()} notebooks at once, against one"
            rows.append({"what": what, "unit": "s", "dtviz": cold, "instead": alone, "ratio": alone / cold})
    publish(rows, "figures")


if __name__ == "__main__":
    main()
