"""A real JupyterLab in a real browser: Debian's Chromium, headless, driven by Playwright.

with lab(folder) as server, browse(server, "explorer.ipynb") as page: ...
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
MISSING = (
    "no chromium on this machine: as root, `apt-get install chromium`, which `make test` does by itself where it can"
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
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
LAPTOP = {"width": 1366, "height": 768}


def put(folder: Path, **values) -> str:
    """The explorer's notebook in this folder, with these parameters, writing its figures there; its name."""
    notebook = parameterize_notebook(load_notebook_node(str(EXPLORER)), values | {"out": str(folder / "figures")})
    nbformat.write(notebook, folder / EXPLORER.name)
    return EXPLORER.name


@dataclass
class Server:
    """A running JupyterLab: its address and the file that it and its kernels write to."""

    url: str
    log: Path

    def complaints(self) -> list[str]:
        """Lines of the log that tell of an error in the server or a kernel."""
        bad = ("Traceback", "[E ", "[C ", "Error:", "CRITICAL")
        return [line for line in self.log.read_text(errors="replace").splitlines() if any(mark in line for mark in bad)]


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Server]:
    """JupyterLab on the notebooks of a folder, with settings of its own, for as long as the block lasts."""
    home = folder / ".jupyter"
    for name, settings in SETTINGS.items():
        file = home / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "lab"),
        **{f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    server = Server(f"http://127.0.0.1:{port}", folder / "server.log")
    with server.log.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(server, process)
            yield server
        finally:
            process.terminate()
            process.wait()


def _wait_for(server: Server, process: subprocess.Popen, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{server.url}/api/status", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start: {server.log.read_text(errors='replace')[-2000:]}")


@dataclass
class Tab:
    """A page with a notebook open, and what its console said."""

    page: object
    errors: list[str] = field(default_factory=list)

    def run_all(self) -> None:
        """Run all cells from the menu, and wait until each has its number, or one an error."""
        self.menu("Run", "Run All Cells")
        self.page.wait_for_function(RAN, timeout=400_000)
        failed = self.page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
        assert failed == []

    def menu(self, name: str, item: str) -> None:
        """Choose an item of a menu."""
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(name, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def command(self, name: str, **arguments) -> None:
        """One of JupyterLab's commands."""
        self.page.evaluate("([name, args]) => void window.jupyterapp.commands.execute(name, args)", [name, arguments])


# Resolves with the milliseconds from the next press of a key or button to when all these images show something else
CHANGED = """([kind, ...elements]) => {
    const limit = performance.now() + 120000
    const before = elements.map(element => element.src)
    let start
    document.addEventListener(kind, () => { start ??= performance.now() }, { once: true, capture: true })
    window.changed = new Promise((resolve, reject) => {
        const check = () => {
            if (start !== undefined && elements.every((element, i) => element.src !== before[i] && element.complete)) {
                resolve(performance.now() - start)
            } else if (performance.now() > limit) {
                reject(new Error(`unchanged: ${elements.filter((element, i) => element.src === before[i]).length}`))
            } else {
                requestAnimationFrame(check)
            }
        }
        check()
    })
}"""


@dataclass
class Hand:
    """What a hand does to the first explorer of a page."""

    tab: Tab

    @property
    def root(self):
        return self.tab.page.locator(".dtviz-explorer").first

    @property
    def status(self):
        return self.root.locator("[role=status], [role=alert]")

    def pictures(self, side: int = 0) -> dict:
        """The elements that show a side's x_t, plan and samples."""
        images = self.root.locator("img")
        return {name: images.nth(3 * side + i) for i, name in enumerate(("noisy", "plan", "samples"))}

    def field(self, label: str):
        return self.root.get_by_label(label, exact=True).first

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name).click()

    def type(self, label: str, text: str) -> None:
        self.field(label).fill(text)
        self.field(label).press("Enter")

    def sees(self, text: str) -> None:
        """Wait for a text."""
        self.root.get_by_text(text).first.wait_for()

    def until(self, done, seconds: float = 120) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"not so after {seconds} s")
            self.tab.page.wait_for_timeout(50)

    def seconds(self, act, event: str, *names: str) -> float:
        """How long after an act's event ("keydown", "click") these pictures of the first side have all changed."""
        pictures = self.pictures()
        elements = [pictures[name].element_handle() for name in names]
        self.tab.page.evaluate(CHANGED, [event, *elements])
        act()
        return self.tab.page.evaluate("() => window.changed") / 1000

    def move(self, key: str, *names: str) -> float:
        """Move the step slider by a key; the seconds until these pictures have changed."""
        self.root.locator(".noUi-handle").first.focus()
        return self.seconds(lambda: self.tab.page.keyboard.press(key), "keydown", *names)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a box on the first plan, from one corner to the other, as shares of its width and height."""
        self.pictures()["plan"].scroll_into_view_if_needed()
        place = self.pictures()["plan"].bounding_box()
        mouse = self.tab.page.mouse

        def go(to: tuple[float, float], steps: int = 1) -> None:
            ends = zip("xy", ("width", "height"), to, strict=True)
            mouse.move(*(place[side] + share * place[size] for side, size, share in ends), steps=steps)

        go(start)
        mouse.down()
        go(end, steps=5)
        for _ in range(2):  # the canvas drops moves that come faster than it draws; a hand rests before it lets go
            self.tab.page.wait_for_timeout(300)
            go(end)
        mouse.up()


@contextlib.contextmanager
def browse(server: Server, notebook: str) -> Iterator[Tab]:
    """A notebook in Chromium, at a laptop's width."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport=LAPTOP)
            tab = Tab(page)
            page.on("console", lambda said: tab.errors.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: tab.errors.append(str(error)))
            page.goto(f"{server.url}/lab/tree/{notebook}")
            page.wait_for_function(READY, timeout=90_000)
            yield tab
        finally:
            browser.close()
