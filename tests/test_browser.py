"""The explorer in a real browser, from opening its notebook to saving a picture; what was seen is kept in tests/artefacts."""

import re
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from . import browser

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)
SEEN = Path(__file__).parent / "artefacts"
NOTEBOOK = browser.ROOT / "notebooks" / "explorer.ipynb"


@pytest.fixture
def folder(tmp_path):
    """The notebook, at four seeds, where it may write."""
    values = {"n_seeds": 4, "out": str(tmp_path / "figures")}
    nbformat.write(parameterize_notebook(load_notebook_node(str(NOTEBOOK)), values), tmp_path / NOTEBOOK.name)
    SEEN.mkdir(exist_ok=True)
    return tmp_path


def test_explorer_by_hand(folder):
    with browser.lab(folder) as server, browser.browse(server, NOTEBOOK.name) as tab:
        page = tab.page
        tab.run_all()
        explorer = page.locator(".dtviz-explorer").first
        explorer.scroll_into_view_if_needed()
        status = explorer.locator("[role=status], [role=alert]")

        def picture(number: int = 0) -> str:
            """The plan of one side as the browser shows it."""
            return explorer.locator("canvas").nth(2 * number).evaluate("canvas => canvas.toDataURL()")

        def noisy() -> str:
            return explorer.locator("img").first.get_attribute("src")

        def field(label: str):
            return explorer.get_by_label(label, exact=True).first

        # generate by pressing Run
        tab.command("application:toggle-left-area")
        page.wait_for_timeout(300)
        explorer.get_by_role("button", name="Two side by side").click()
        page.screenshot(path=SEEN / "ready.png")
        field("Prompt").fill("cat face")
        explorer.get_by_role("button", name="Run").click()
        page.wait_for_timeout(5000)
        page.screenshot(path=SEEN / "light.png")
        print(status.all_inner_texts(), tab.errors, server.complaints())
        print(explorer.locator("canvas").count())
        explorer.screenshot(path=SEEN / "whole.png")
        tab.command("apputils:change-theme", theme="JupyterLab Dark")
        page.wait_for_timeout(1500)
        explorer.screenshot(path=SEEN / "dark.png")
