"""All notebooks at the quick profile, cold and warm: `make bench` writes figures/bench/figures.csv.

Cold computes everything. Warm reads the cache of the cold run and draws again. Both run as many notebooks at a time as there are
cores. With `--keep FOLDER` the figures, the cache and the executed notebooks stay there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .measure import publish, timed


def run(folder: Path) -> float:
    """Return the seconds of `python -m dtviz figures` into `folder`."""
    command = [sys.executable, "-m", "dtviz", "figures", "--out", str(folder / "figures")]
    environment = os.environ | {"DTVIZ_STORE": str(folder / "store")}
    return timed(lambda: subprocess.run(command, env=environment, check=True))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(sys.argv[sys.argv.index("--keep") + 1]) if "--keep" in sys.argv else Path(name)
        cold, warm = run(folder), run(folder)
    row = {
        "what": "make figures: warm, against cold",
        "unit": "s",
        "dtviz": warm,
        "instead": cold,
        "ratio": cold / warm,
    }
    publish([row], "figures")


if __name__ == "__main__":
    main()
