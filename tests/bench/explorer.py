"""How quick the explorer is in a browser: `make bench` writes figures/bench/explorer.csv.

Seconds by the page's own clock, from pressing Run or a key on the step slider to all images and curves. `load` is the number of
processes that waited for each core: at 1 or less the machine was idle.
"""

import os
import statistics
import tempfile
from pathlib import Path

from tests import browser

from .measure import publish

PROMPTS = ("cat face", "rabbit face", "bear", "frog", "tiger face")


def measure(tab: browser.Tab) -> list[dict]:
    """Run the distilled model several times at eight seeds, then move between all steps of the base."""
    tab.press("Two sides")
    tab.method("distilled")
    runs = []
    for prompt in PROMPTS:
        tab.type("Prompt", prompt)
        runs.append(tab.seconds(lambda: tab.press("Run"), "click", "x_t", "x0", "samples", "curves"))
    tab.method("base")
    tab.press("Run")
    tab.wait_for("base: 20 base steps")
    tab.move("ArrowLeft", "x_t")  # the last x0 is the final image
    moves = [tab.move("ArrowLeft", "x_t", "x0", "samples", "curves") for _ in range(18)]
    columns = {"distilled model, 8 seeds: from Run to all images and curves": runs}
    columns |= {"base, 8 seeds: from a key to the step's images and curves": moves}
    shared = {"unit": "s", "load": os.getloadavg()[0] / (os.cpu_count() or 1)}
    return [
        {"what": what, "n": len(seconds), "median": statistics.median(seconds), "most": max(seconds)} | shared
        for what, seconds in columns.items()
    ]


def main() -> None:
    if browser.CHROMIUM is None:
        return print(browser.MISSING)
    with tempfile.TemporaryDirectory() as folder, browser.explorer(Path(folder)) as tab:
        tab.press("Run")
        tab.wait_for("base: 20 base steps")
        publish(measure(tab), "explorer")


if __name__ == "__main__":
    main()
