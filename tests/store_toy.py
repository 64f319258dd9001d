"""A real S3 server on loopback (moto), and a proxy before it that fails as networks and stores do."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import fsspec
import pytest

from tasks.sources import stores

KEY, SECRET = "PLANTEDKEYID", "planted/secret+of0the1store"


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path?query" matches `request`.

    kind: a status as text; `cut` the connection in mid-body; `short`, fewer bytes than there are and a header that says
    so; `flip`, one bit; `hang`, no answer; `drip`, a slow one.
    """

    request: str
    kind: str
    times: int = 1


@dataclass
class Store:
    """url: of the proxy. requests: what came, and `hits` what faults met."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    hits: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def fail(self, request: str, kind: str, times: int = 1) -> None:
        self.faults.append(Fault(request, kind, times))

    def meet(self, request: str) -> str | None:
        self.requests.append(request)
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.request, request):
                fault.times -= 1
                self.hits += 1
                return fault.kind
        return None

    def count(self, request: str) -> int:
        return sum(re.search(request, one) is not None for one in self.requests)


@contextmanager
def serve_s3() -> Iterator[str]:
    """URL of a moto server in this process, on a free port, gone afterwards."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # What moto keeps belongs to the process and not to the server: another module's buckets would still be there.
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST"), timeout=10).close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def require_credentials(url: str, *, on: bool) -> None:
    """Let moto check keys from now on, or not: nobody has a valid one there."""
    request = Request(f"{url}/moto-api/reset-auth", data=b"0" if on else b"inf", headers={"Content-Type": "text/plain"})
    urlopen(request, timeout=10).close()


@contextmanager
def serve_badly(upstream: str) -> Iterator[Store]:
    """A proxy before `upstream`, with the faults that are put into the Store."""
    address = urlsplit(upstream).netloc
    store = Store("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length) if length else None
            kind = store.meet(f"{self.command} {self.path}")
            self.close_connection = True
            if kind == "hang":
                store.released.wait(30)
                return
            if kind is not None and kind.isdigit():
                self._answer(int(kind), [], b"")
                return
            upward = http.client.HTTPConnection(address, timeout=30)
            upward.request(self.command, self.path, content, dict(self.headers.items()))
            answer = upward.getresponse()
            body = answer.read()
            headers = [item for item in answer.getheaders() if item[0].lower() not in ("connection", "server", "date")]
            if kind == "short":
                body = body[: len(body) // 2]
                headers = [item for item in headers if item[0].lower() != "content-length"]
                headers.append(("Content-Length", str(len(body))))
            if kind == "flip":
                body = body[:-1] + bytes([body[-1] ^ 1])
            self._answer(answer.status, headers, body, kind)
            upward.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, kind: str | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if not headers:
                self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return
            if kind == "drip":
                for place in range(0, len(body), max(1, len(body) // 4)):
                    self.wfile.write(body[place : place + max(1, len(body) // 4)])
                    self.wfile.flush()
                    store.released.wait(0.1)
                return
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        store.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def open_bucket(bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Store]:
    """An empty bucket behind the proxy; endpoint and credentials in the environment alone. s3: URL of `serve_s3`."""
    with serve_badly(s3) as store:
        environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": store.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # none but our own, so that they can be counted
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",  # as with stores that send none
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(stores, "FIRST_WAIT_S", 0.01)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir(bucket)
        yield store
        store.faults.clear()
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
        filesystem.rm(bucket, recursive=True)
