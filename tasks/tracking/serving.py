"""A registered model behind HTTP: MLflow's scoring server, which has no limits, with limits around it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from tasks.errors import StorageError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

AT_ONCE = 8
"""Requests; more are answered with 503."""
BODY_SECONDS = 60.0
"""In which a request must have arrived."""


def make_app(folder: Path, *, max_bytes: int) -> App:
    """The scoring server of the version in `folder`, which `tasks.model_store` has checked, behind `LimitBody`."""
    # Pickles have been ruled out; MLflow shall hold to it, too.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    with warnings.catch_warnings(action="ignore"):
        import mlflow.pyfunc
        from mlflow.pyfunc import scoring_server

        return LimitBody(scoring_server.init(mlflow.pyfunc.load_model(str(folder))), max_bytes)


def serve(app: App, host: str, port: int) -> None:
    """Answer until SIGINT, which is how people end it, or SIGTERM. Raises StorageError where the port cannot be had."""
    import uvicorn

    try:
        with socket.create_server((host, port)) as listening:
            config = uvicorn.Config(
                app, limit_concurrency=AT_ONCE, log_level="warning", access_log=False, server_header=False
            )
            with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again, once it has shut down
                uvicorn.Server(config).run(sockets=[listening])
    except OSError as error:
        # Python adds the address to the system's words; of a name that does not resolve they are the only ones.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise StorageError(f"cannot listen on {host}:{port} ({reason}): choose another --host or --port") from None


class LimitBody:
    """Takes a request whole, and refuses it with 413 as soon as it is known to be larger than `max_bytes`.

    So nothing behind it sees a part of a request, and one takes no more memory than that before it is parsed. What is
    not JSON is refused with 415: the scoring server reads Parquet, too, of which some kilobytes unpack to gigabytes.
    """

    def __init__(self, app: App, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope.get("method") == "POST" and not _is_json(scope):
            await _refuse(send, 415, "the request is no application/json")
            return
        if _stated_length(scope) > self.max_bytes:
            await _refuse(send, 413, f"the request is larger than {self.max_bytes} bytes")
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.seconds)
        except TimeoutError:
            await _refuse(send, 408, f"the request did not arrive within {self.seconds:.0f} s")
            return
        if body is None:
            await _refuse(send, 413, f"the request is larger than {self.max_bytes} bytes")
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, None where it is too large; a part of it where the client went away."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                return None
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(body)


def _is_json(scope: MutableMapping[str, Any]) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return [kind.partition(b";")[0].strip().lower() for kind in kinds] == [b"application/json"]


def _stated_length(scope: MutableMapping[str, Any]) -> int:
    """0 where the request does not state it, as chunked ones."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(send: Send, status: int, reason: str) -> None:
    content = json.dumps({"error_code": "BAD_REQUEST", "message": reason}).encode()
    # The rest of the request is not read: the connection cannot be used again.
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
