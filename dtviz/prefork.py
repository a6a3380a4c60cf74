"""`python -m` with the imports already made: a server makes them once, and forks for every module that it is asked to run.

    with serving(["papermill.cli", "dtviz.study"]) as python:
        subprocess.run([*python, "papermill", "in.ipynb", "out.ipynb"])     # for [sys.executable, "-m", "papermill", ...]

The command hands its arguments, environment, folder and standard streams to a fork of the server, passes signals on to it, and
ends as it ends. Each of the two is killed with the other, and the command with its parent: nothing is left running. Where
forking is not safe (not on Linux), or the server is gone, the command is `python -m` itself. This file is also the command,
which is why it imports nothing but the standard library.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence

PASSED = (signal.SIGINT, signal.SIGTERM)
MOST = 107  # bytes of a socket's address
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


@contextlib.contextmanager
def serving(modules: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Iterator[list[str]]:
    """The beginning of a command line, in place of `python -m`, good for as long as the block lasts.

    Args:
        modules: what is imported beforehand, by absolute names; none of them may start threads or an accelerator at import.
        environment: what they are imported in; None: this process's. Commands may have another.
    """
    plain = [sys.executable, "-m"]
    if sys.platform != "linux":
        yield plain
        return
    with tempfile.TemporaryDirectory(prefix="dtviz-") as folder:  # which nobody else may enter
        address = os.path.join(folder, "socket")
        if len(os.fsencode(address)) > MOST:
            yield plain
            return
        # torch asks the driver's library how many accelerators there are: asked the usual way, a fork could use none
        environment = dict(os.environ if environment is None else environment) | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        serve = f"from {__name__} import serve; import sys; serve(int(sys.argv[1]), *sys.argv[2:])"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()  # who comes before the imports are made waits for them
            server = subprocess.Popen(
                [sys.executable, "-c", serve, str(listener.fileno()), *modules],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the commands
            )
        try:
            yield [sys.executable, "-S", os.path.abspath(__file__), address]
        finally:
            server.kill()
            server.wait()


def serve(listener: int, *modules: str) -> None:
    """Import, and fork for each command until killed, or until the parent is gone."""
    _die_with_parent()
    with socket.socket(fileno=listener) as listening:
        for module in modules:
            importlib.import_module(module)
        gc.freeze()  # what is never looked at again is never copied
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while True:
            command, _ = listening.accept()
            if os.fork() == 0:
                break
            command.close()
    _run(command)


def _run(command: socket.socket) -> None:
    """In the fork: be the process that the command stands for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, *_ = socket.recv_fds(command, 8, 3)
    with command.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(size)))
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    command.sendall(os.getpid().to_bytes(8))
    over = threading.Event()
    threading.Thread(target=_die_with, args=(command, over), daemon=True).start()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    over.set()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed
            stream.flush()
    command.sendall(bytes([code & 255]))
    os._exit(code & 255)  # taking apart what was imported would take seconds


def _die_with(command: socket.socket, over: threading.Event) -> None:
    command.recv(1)  # which sends no more: it ends
    if not over.is_set():
        os.kill(os.getpid(), signal.SIGKILL)


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended just now
        os.kill(pid, number)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _command(address: str, *arguments: str) -> int:
    """Have the server run a module, and be it for whoever waits; its exit status."""
    _die_with_parent()
    with socket.socket(socket.AF_UNIX) as server:
        told = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        request = json.dumps(told).encode()
        try:
            server.connect(address)
            socket.send_fds(server, [len(request).to_bytes(8)], [0, 1, 2])
            server.sendall(request)
            pid = int.from_bytes(server.recv(8))
        except OSError:
            pid = 0
        if not pid:
            os.execv(sys.executable, [sys.executable, "-m", *arguments])
        for number in PASSED:
            signal.signal(number, lambda number, _: _pass_on(pid, number))
        code = server.recv(1)
    return code[0] if code else 128 + signal.SIGKILL


if __name__ == "__main__":
    sys.exit(_command(*sys.argv[1:]))
