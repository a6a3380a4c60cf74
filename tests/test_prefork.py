"""dtviz.prefork against `python -m` itself, with real processes, really killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dtviz.prefork import serving

from .test_figures import alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is not safe elsewhere: the plain command runs")

# Tells all that a process is given, and ends as it is told to
TELL = """
import json, os, sys
told = {"arguments": sys.argv[1:], "folder": os.getcwd(), "said": os.environ["SAID"], "read": sys.stdin.read()}
told |= {"name": __name__, "imported": "colorsys" in sys.modules}
print(json.dumps(told, sort_keys=True))
print("to stderr", file=sys.stderr)
{"": sys.exit, "raise": lambda: 1 / 0, "text": lambda: sys.exit("no")}.get(sys.argv[1], lambda: sys.exit(int(sys.argv[1])))()
"""
# Says its number and waits; what SIGTERM does is its own
WAIT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Environment in which `tell` and `wait` are modules."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tell.py").write_text(TELL)
    (folder / "wait.py").write_text(WAIT)
    return os.environ | {"PYTHONPATH": str(folder), "SAID": "grüße"}


@pytest.fixture(scope="module")
def python(modules):
    with serving(["colorsys"], environment=modules) as command:
        yield command


def until(done, seconds=20):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def begin(command, tmp_path, environment):
    """A running `wait`, and the number of the process that is it."""
    file = tmp_path / "number"
    process = subprocess.Popen([*command, "wait", str(file)], env=environment)
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    return process, int(file.read_text())


@pytest.mark.parametrize("ending", ["", "0", "3", "raise", "text"])
def test_it_is_python_m_with_the_imports_made(python, modules, tmp_path, ending):
    given = {"env": modules, "cwd": tmp_path, "input": "one\ntwo", "capture_output": True, "text": True}
    plain = subprocess.run([sys.executable, "-m", "tell", ending, "a b", "ü"], **given)
    forked = subprocess.run([*python, "tell", ending, "a b", "ü"], **given)
    assert forked.returncode == plain.returncode
    assert forked.stdout == plain.stdout.replace('"imported": false', '"imported": true') != plain.stdout
    assert ("to stderr" in forked.stderr) and forked.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]


def test_signals_are_passed_on(python, modules, tmp_path):
    process, number = begin(python, tmp_path, modules)
    assert number != process.pid
    process.terminate()
    assert process.wait(20) == 7
    until(lambda: not alive(number))


def test_a_killed_command_takes_its_fork_along(python, modules, tmp_path):
    process, number = begin(python, tmp_path, modules)
    process.kill()
    process.wait()
    until(lambda: not alive(number))


def test_a_killed_fork_ends_its_command(python, modules, tmp_path):
    process, number = begin(python, tmp_path, modules)
    os.kill(number, signal.SIGKILL)
    assert process.wait(20) == 128 + signal.SIGKILL


def test_a_killed_parent_takes_all_along(modules, tmp_path):
    script = (
        "import subprocess, sys\nfrom dtviz.prefork import serving\n"
        "with serving([]) as python:\n    subprocess.run([*python, 'wait', sys.argv[1]])"
    )
    file = tmp_path / "number"
    paths = os.pathsep.join([modules["PYTHONPATH"], os.getcwd()])
    parent = subprocess.Popen([sys.executable, "-c", script, str(file)], env=modules | {"PYTHONPATH": paths})
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    parent.kill()
    parent.wait()
    until(lambda: not alive(int(file.read_text())))


def test_where_the_socket_finds_no_place_it_is_the_plain_command(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    (tmp_path / ("long" * 30)).mkdir()
    with serving([]) as python:
        assert python == [sys.executable, "-m"]


def test_without_a_server_it_is_the_plain_command(modules, tmp_path):
    given = {"env": modules, "cwd": tmp_path, "input": "", "capture_output": True, "text": True}
    with serving([], environment=modules) as python:
        pass
    gone = subprocess.run([*python, "tell", "3"], **given)
    assert (gone.returncode, '"imported": false' in gone.stdout) == (3, True)


def test_a_server_that_cannot_import_is_the_plain_command(modules, tmp_path, capfd):
    given = {"env": modules, "cwd": tmp_path, "input": "", "capture_output": True, "text": True}
    with serving(["no_such_module"], environment=modules) as python:
        failed = subprocess.run([*python, "tell", "3"], **given)
    assert (failed.returncode, '"imported": false' in failed.stdout) == (3, True)
    assert "no_such_module" in capfd.readouterr().err
