"""Prefect's API for one run: the server that PREFECT_API_URL names, else one of our own on loopback.

Prefect would start an ephemeral server by itself. Ours is that server in a process group of its own that ends with us:
Ctrl-C in a terminal reaches every process of the group, and a flow whose server dies with it waits for minutes to
report its own end; and after kill -9 Prefect's would stay for ever. It also starts while Prefect is being imported.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from tasks.errors import StorageError
from tasks.process import die_with_parent, tell_parent

_STARTUP_S = 120.0
"""A fresh home is migrated at the first start, which on two busy cores outlasts Prefect's own limit of 20 seconds."""
_POLL_S = 0.2
_GRACE_S = 5.0


def start() -> Callable[[], None]:
    """Set PREFECT_API_URL, starting a server if it is not set. Call it before Prefect is imported, and what it returns
    (which waits until the server answers; StorageError if it does not) before the first flow.
    """
    if os.environ.get("PREFECT_API_URL"):
        return lambda: None
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listener.fileno())],
            env=tell_parent(),
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            process_group=0,
        )
    # Registered before Prefect registers anything, so run last: Prefect sends its last events when it shuts down.
    atexit.register(_stop, process)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return lambda: _wait(process, f"http://127.0.0.1:{port}/api/health")


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _STARTUP_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), direct.open(url, timeout=_STARTUP_S):
            return
        time.sleep(_POLL_S)
    raise StorageError(
        "Prefect's local server did not start: its reason stands above; `dvc repro` runs the same stages without one"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(descriptor: int) -> None:
    """Serve Prefect's API on the bound socket `descriptor` until our parent ends or ends us."""
    die_with_parent(signal.SIGTERM)
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[socket.socket(fileno=descriptor)])


def serve_at(host: str, port: int) -> None:
    """Serve Prefect's API, its UI and all that it does by itself (schedules, automations) until we are ended."""
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(final=True), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(int(sys.argv[1]))
    else:
        serve_at(sys.argv[1], int(sys.argv[2]))
