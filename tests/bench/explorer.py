"""How quick the explorer is in a browser: `make bench` writes figures/bench/explorer.csv.

From pressing Run to the first picture of the student (the plans as they come), and to all of it, measured; and from a key on the
step slider to all three pictures of that step, by the page's own clock. `load` is how many processes wanted each core of the
machine: at 1 or less it was idle.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from tests import browser

from .measure import publish

PROMPTS = ("cat face", "rabbit face", "bear", "frog", "tiger face")


def measure(tab: browser.Tab) -> list[dict]:
    """Several runs of the student at eight seeds, and moves between all of the base's steps."""
    hand = browser.Hand(tab)
    hand.press("Two side by side")
    hand.field("Method").select_option("distilled")
    first, whole = [], []
    for prompt in PROMPTS:
        hand.type("Prompt", prompt)
        first.append(hand.seconds(lambda: hand.press("Run"), "click", "samples"))
        hand.until(lambda: hand.root.get_by_role("button", name="Stop").is_disabled())
        hand.type("Prompt", prompt + " ")
        hand.root.locator(".noUi-handle").first.focus()
        tab.page.keyboard.press("Home")
        tab.page.wait_for_timeout(500)
        whole.append(hand.seconds(lambda: hand.press("Run"), "click", "plan"))
        hand.until(lambda: hand.root.get_by_role("button", name="Stop").is_disabled())
    hand.field("Method").select_option("base")
    hand.press("Run")
    hand.sees("base: 20 base steps")
    hand.move("ArrowLeft", "noisy")  # the last plan is the final image
    moves = [hand.move("ArrowLeft", "noisy", "plan", "samples") for _ in range(18)]
    return [
        _row("student, 8 seeds: from Run to the first picture", first),
        _row("student, 8 seeds: from Run to all pictures and numbers", whole),
        _row("base, 8 seeds: from a key to the step's pictures", moves),
    ]


def _row(what: str, seconds: list[float]) -> dict:
    told = {"what": what, "unit": "s", "n": len(seconds), "median": statistics.median(seconds), "most": max(seconds)}
    return told | {"load": os.getloadavg()[0] / (os.cpu_count() or 1)}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook = browser.put(folder)
        with browser.lab(folder) as server, browser.browse(server, notebook) as tab:
            tab.page.set_default_timeout(300_000)
            tab.run_all()
            publish(measure(tab), "explorer")


if __name__ == "__main__":
    main()
