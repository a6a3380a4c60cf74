"""The explorer's notebook in JupyterLab, in Debian's headless Chromium, driven by Playwright."""

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


@dataclass
class Tab:
    """A page with the explorer's notebook, and what a hand does to it."""

    page: object
    log: Path  # of JupyterLab and its kernel
    messages: list[str] = field(default_factory=list)  # errors of the page's console

    def errors(self) -> list[str]:
        marks = ("Traceback", "[E ", "[C ", "Error:", "CRITICAL")
        lines = self.log.read_text(errors="replace").splitlines()
        return self.messages + [line for line in lines if any(mark in line for mark in marks)]

    @property
    def root(self):
        return self.page.locator(".dtviz-explorer").first

    def command(self, name: str, **arguments) -> None:
        self.page.evaluate("([name, args]) => void window.jupyterapp.commands.execute(name, args)", [name, arguments])

    def image(self, name: str):
        return self.root.locator("img").nth(IMAGES.index(name))

    def method(self, name: str) -> None:
        self.root.locator("select").first.select_option(name)

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name).click()

    def type(self, label: str, text: str, side: int = 0) -> None:
        field = self.root.get_by_label(label, exact=True).nth(side)
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
def explorer(folder: Path) -> Iterator[Tab]:
    """Show the widgets of the explorer's notebook in a JupyterLab of its own."""
    from playwright.sync_api import sync_playwright

    notebook = nbformat.read(EXPLORER, as_version=4)
    shown = next(i for i, cell in enumerate(notebook.cells) if "dtviz.explore(" in cell.source)
    notebook.cells = notebook.cells[: shown + 1]  # what follows is the same by code
    nbformat.write(notebook, folder / EXPLORER.name)
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
    with (folder / "server.log").open("wb") as log, sync_playwright() as play:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            tab = Tab(browser.new_page(viewport=LAPTOP), folder / "server.log")
            tab.page.set_default_timeout(180_000)
            tab.page.on("console", lambda line: tab.messages.append(line.text) if line.type == "error" else None)
            tab.page.on("pageerror", lambda error: tab.messages.append(str(error)))
            while server.poll() is None:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=5).close()
                    break
                time.sleep(0.1)
            tab.page.goto(f"http://127.0.0.1:{port}/lab/tree/{EXPLORER.name}")
            tab.page.wait_for_function(READY)
            tab.command("notebook:run-all-cells")
            tab.root.wait_for()
            yield tab
        finally:
            browser.close()
            server.terminate()
            server.wait()
