"""A JupyterLab in Debian's headless Chromium, driven by Playwright.

with lab(folder) as server, browse(server, "explorer.ipynb") as tab: ...
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

ROOT = Path(__file__).resolve().parents[1]
EXPLORER = ROOT / "notebooks" / "explorer.ipynb"
CHROMIUM = shutil.which("chromium")
MISSING = "no chromium on this machine: `apt-get install chromium`, which `make test` does where it can"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
# No questions about news, and all cells in the page, not only those in view
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
# Before its kernel is connected a notebook does not run, it asks which kernel to take
READY = """() => {
    const session = window.jupyterapp?.shell.currentWidget?.sessionContext
    return session?.isReady && session.session?.kernel?.connectionStatus === 'connected' && session.session.kernel.status === 'idle'
}"""
RAN = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]
    const failed = document.querySelector("[data-mime-type='application/vnd.jupyter.error']")
    return failed || prompts.every(prompt => /\\[\\d+\\]/.test(prompt.innerText))
}"""
# Resolves with the milliseconds from the next event of a kind to when all these images show something else
CHANGED = """([kind, ...images]) => {
    const before = images.map(image => image.src)
    let start
    document.addEventListener(kind, () => { start ??= performance.now() }, { once: true, capture: true })
    window.changed = new Promise(resolve => {
        const check = () => start !== undefined && images.every((image, i) => image.src !== before[i] && image.complete)
            ? resolve(performance.now() - start) : requestAnimationFrame(check)
        check()
    })
}"""
LAPTOP, WIDE = {"width": 1280, "height": 800}, {"width": 1920, "height": 1080}
IMAGES = ("x_t", "x0", "samples", "curves")  # of a side, in the order of the page


def put(folder: Path, **values) -> str:
    """Copy the explorer's notebook with these parameters; return its name."""
    notebook = parameterize_notebook(load_notebook_node(str(EXPLORER)), values | {"out": str(folder / "figures")})
    nbformat.write(notebook, folder / EXPLORER.name)
    return EXPLORER.name


@dataclass
class Server:
    """A running JupyterLab: its address and the log of it and its kernels."""

    url: str
    log: Path

    def errors(self) -> list[str]:
        marks = ("Traceback", "[E ", "[C ", "Error:", "CRITICAL")
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if any(mark in line for mark in marks)]


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Server]:
    """Run JupyterLab on the notebooks of a folder, with settings of its own, inside the block."""
    home = folder / ".jupyter"
    for name, settings in SETTINGS.items():
        file = home / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment |= {"PYTHONPATH": str(ROOT), "JUPYTERLAB_SETTINGS_DIR": str(home / "lab")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    server = Server(f"http://127.0.0.1:{port}", folder / "server.log")
    with server.log.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(900):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{server.url}/api/status", timeout=5).close()
                    break
                assert process.poll() is None, server.log.read_text(errors="replace")[-2000:]
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait()


@dataclass
class Tab:
    """A page with a notebook, the errors of its console, and what a hand does to its first explorer."""

    page: object
    errors: list[str] = field(default_factory=list)

    @property
    def root(self):
        return self.page.locator(".dtviz-explorer").first

    def run_all(self) -> None:
        for menu, item in ((".lm-MenuBar-itemLabel", "Run"), (".lm-Menu-itemLabel", "Run All Cells")):
            self.page.locator(menu).get_by_text(item, exact=True).click()
        self.page.wait_for_function(RAN, timeout=600_000)
        assert self.page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts() == []

    def command(self, name: str, **arguments) -> None:
        self.page.evaluate("([name, args]) => void window.jupyterapp.commands.execute(name, args)", [name, arguments])

    def image(self, name: str):
        return self.root.locator("img").nth(IMAGES.index(name))

    def method(self, name: str) -> None:
        self.root.locator("select").first.select_option(name)

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name).click()

    def type(self, label: str, text: str) -> None:
        field = self.root.get_by_label(label, exact=True).first
        field.fill(text)
        field.press("Enter")

    def wait_for(self, text: str) -> None:
        self.root.get_by_text(text).first.wait_for()

    def seconds(self, act, event: str, *names: str) -> float:
        """Return how long after an act's event ("keydown", "click") these images of the first side have all changed."""
        self.page.evaluate(CHANGED, [event, *(self.image(name).element_handle() for name in names)])
        act()
        return self.page.evaluate("() => window.changed") / 1000

    def move(self, key: str, *names: str) -> float:
        """Move the step slider by a key."""
        self.root.locator(".noUi-handle").first.focus()
        return self.seconds(lambda: self.page.keyboard.press(key), "keydown", *names)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a box on the first x0, between two corners as shares of its width and height."""
        self.image("x0").scroll_into_view_if_needed()
        place, mouse = self.image("x0").bounding_box(), self.page.mouse
        ends = [(place["x"] + x * place["width"], place["y"] + y * place["height"]) for x, y in (start, end)]
        mouse.move(*ends[0])
        mouse.down()
        mouse.move(*ends[1], steps=5)
        for _ in range(2):  # the canvas drops moves that come faster than it draws; a hand rests before it lets go
            self.page.wait_for_timeout(500)
            mouse.move(*ends[1])
        mouse.up()


@contextlib.contextmanager
def browse(server: Server, notebook: str) -> Iterator[Tab]:
    """Open a notebook in Chromium, at a laptop's width."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport=LAPTOP)
            tab = Tab(page)
            page.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: tab.errors.append(str(error)))
            page.goto(f"{server.url}/lab/tree/{notebook}")
            page.wait_for_function(READY, timeout=180_000)
            yield tab
        finally:
            browser.close()
