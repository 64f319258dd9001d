"""The registered model behind HTTP: images of any size are answered, huge requests refused, the server lives on."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registered_toy import registered, write_outputs

from flows.cli import main
from tasks import pyfunc_model, tracking
from tasks.errors import StorageError
from tasks.tracking import serving
from tasks.tracking.serving import LimitBody

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SECRET = "planted-hunter2"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_outputs(tmp_path_factory.mktemp("workspace"))
    with registered(folder):
        yield folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def started(command: list[str], workspace: Path, port: int, **environment: str) -> Iterator[Path]:
    """A server in a session of its own, once it answers; its output. It and its children are ended by their ids."""
    log = workspace / f"server-{port}.log"
    own = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(workspace),
        "AWS_SECRET_ACCESS_KEY": SECRET,
        **environment,
    }
    with open(log, "wb") as file:
        server = subprocess.Popen(
            command, cwd=workspace, env=own, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(port, server, log)
        yield log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            if ask(port, "GET", "/ping")[0] == 200:
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def predict(port: int, images: np.ndarray, **params: float) -> tuple[int, Any]:
    document = {"inputs": images.tolist(), **({"params": params} if params else {})}
    status, content = ask(port, "POST", "/invocations", json.dumps(document).encode())
    return status, json.loads(content)


NONSENSE = (
    b"",
    b"\x00\xff",
    b"3",
    b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"inputs": [[[[1, 2, 3]], [[1, 2]]]]}',
    b'{"inputs": [[[["a", "b", "c"]]]]}',
    b'{"inputs": [[[[' + b"9" * 10_000 + b", 0, 0]]]]}",
    b'{"inputs": [[[[NaN, -1, 1e400]]]]}',
    b'{"inputs": [[[[]]]]}',
    b'{"inputs": []}',
    b'{"inputs": [[[[1, 2, 3]]]], "params": {"score_threshold": "x"}}',
    b'{"inputs": [[[[1, 2, 3]]]], "params": {"score_threshold": 7}}',
    b'{"dataframe_split": {"columns": ["a"], "data": [[1]]}}',
)
"""Bodies that are no images."""


def check_answers(port: int) -> None:
    """Two sizes, a threshold, and what is refused in a sentence."""
    generator = np.random.default_rng(5)
    for height, width in ((90, 70), (33, 201)):
        image = generator.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        status, answer = predict(port, image)
        (found,) = answer["predictions"]
        assert status == 200
        assert len(found["scores"]) == len(found["boxes"]) == len(found["masks"]) > 0
        assert {tuple(mask["size"]) for mask in found["masks"]} == {(height, width)}
        status, answer = predict(port, image, score_threshold=1.0)
        assert answer == {"predictions": [{"boxes": [], "scores": [], "masks": []}]}
    # MLflow's schema stands before the model: one image has to be a batch of one.
    status, answer = predict(port, np.zeros((20, 30, 3), np.uint8))
    assert status == 400
    assert "does not match expected shape (-1, -1, -1, 3)" in answer["message"]
    status, answer = predict(port, np.zeros((300, 1, 1, 3), np.uint8))
    assert status == 400
    assert answer["message"].endswith("300 images at once, more than 256: send fewer, or set MOSIS_MAX_IMAGES")
    assert "stack_trace" not in answer
    status, answer = predict(port, np.zeros((1, 100, 401, 3), np.uint8))
    assert status == 400
    assert "an image of 401 x 100, more than 40000 pixels: shrink it" in answer["message"]


def listening(port: int) -> set[str]:
    """Hexadecimal addresses of this machine that listen on the port, IPv4 and IPv6."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}


@pytest.mark.slow
def test_mlflow_serves_the_champion(workspace: Path) -> None:
    port = free_port()
    command = [str(BIN / "mlflow"), "models", "serve", "-m", "models:/mosis@champion", "--env-manager", "local"]
    with started([*command, "--port", str(port)], workspace, port, MOSIS_MAX_IMAGE_PIXELS="40000") as log:
        check_answers(port)
        assert listening(port) == {"0100007F"}
        assert predict(port, np.zeros((1, 8, 8, 3), np.uint8))[0] == 200
    assert SECRET not in log.read_text()


@pytest.mark.slow
def test_mosis_serve_refuses_huge_requests_and_lives_on(workspace: Path) -> None:
    port = free_port()
    script = "import sys; from flows.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "serve", "--port", str(port), "--max-request-mib", "1"]
    with started(command, workspace, port, MOSIS_MAX_IMAGE_PIXELS="40000") as log:
        check_answers(port)
        assert listening(port) == {"0100007F"}
        # Refused by what it says of itself, before any of it is sent.
        status, content = ask(port, "POST", "/invocations", **{"Content-Length": str(10**12)})
        assert (status, json.loads(content)["message"]) == (413, "the request is larger than 1048576 bytes")
        for body in NONSENSE:
            assert ask(port, "POST", "/invocations", body)[0] in (400, 500)
        # MLflow reads these, too; a small Parquet unpacks to any size.
        for kind in ("text/csv", "application/vnd.apache.parquet"):
            assert ask(port, "POST", "/invocations", b"1,2,3", **{"Content-Type": kind})[0] == 415
        # One that does not say how large it is.
        chunks = (b"[" * 2**16 for _ in range(64))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            assert ask(port, "POST", "/invocations", chunks)[0] == 413
        assert predict(port, np.zeros((1, 8, 8, 3), np.uint8))[0] == 200
    assert SECRET not in log.read_text()
    assert f"models:/mosis/1 answers at http://127.0.0.1:{port}/invocations" in log.read_text()


def test_a_port_in_use_is_one_line() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StorageError, match=r"cannot listen on 127\.0\.0\.1:\d+ \(Address already in use\): choose"),
    ):
        serving.serve(LimitBody(echo, 1), "127.0.0.1", taken.getsockname()[1])


def test_serving_needs_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["serve", "--model", "weights.pkl"]) == 2
    assert "write models:/NAME@ALIAS" in capsys.readouterr().err


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it got; another message after it must be the client's going away."""
    message = await receive()
    assert message["more_body"] is False
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})
    assert (await receive())["type"] == "http.disconnect"


JSON = (b"application/json",)


def through(
    parts: list[bytes], *, most: int, stated: bytes | None = None, seconds: float = 5.0, kinds: tuple[bytes, ...] = JSON
) -> tuple[int, bytes, int]:
    """(status, body, messages read) of a POST that comes in `parts`; without an end it stops coming.

    kinds: its content types.
    """
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts[:-1]]
    messages += [{"type": "http.request", "body": part, "more_body": False} for part in parts[-1:]]
    sent: list[dict[str, Any]] = []
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        if read <= len(messages):
            return messages[read - 1]
        if not parts:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [*((b"content-type", kind) for kind in kinds), *([(b"content-length", stated)] if stated else [])]
    scope = {"type": "http", "method": "POST", "headers": headers}
    asyncio.run(LimitBody(echo, most, seconds)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], read


def test_a_body_up_to_the_limit_passes_whole() -> None:
    assert through([b"ab", b"", b"cd"], most=4)[:2] == (200, b"abcd")
    assert through([b""], most=4)[:2] == (200, b"")
    assert through([b"abcd"], most=4, stated=b"4")[:2] == (200, b"abcd")


def test_a_larger_one_is_refused_as_soon_as_that_is_known() -> None:
    assert through([b"abcde"], most=4, stated=b"5")[::2] == (413, 0)
    assert through([b"abc", b"de", b"fg", b"h"], most=4)[::2] == (413, 2)
    assert through([b"abcde"], most=4, stated=b"1")[::2] == (413, 1)  # what it states is not believed
    assert through([b"abcde"], most=4, stated=b"-7")[0] == 413
    assert through([b"a"], most=4, stated=b"9" * 400)[::2] == (413, 0)


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (JSON, 200),
        ((b"Application/JSON; charset=utf-8",), 200),
        ((), 415),
        ((b"text/csv",), 415),
        ((b"application/vnd.apache.parquet",), 415),
        ((*JSON, b"text/csv"), 415),
    ],
)
def test_only_json_is_passed_on(kinds: tuple[bytes, ...], status: int) -> None:
    assert through([b"{}"], most=4, kinds=kinds)[0] == status


def test_one_that_does_not_come_is_given_up() -> None:
    status, body, _ = through([], most=4, seconds=0.1)
    assert status == 408
    assert b"did not arrive" in body


def test_limits_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*shape: int) -> tuple[int, ...]:
        return pyfunc_model.check_images(np.broadcast_to(np.uint8(0), shape)).shape

    assert check(4096, 4096, 3) == (1, 4096, 4096, 3)
    assert check(256, 2, 2, 3) == (256, 2, 2, 3)
    for shape, words in (((4097, 4096, 3), "4096 x 4097, more than 16777216 pixels"), ((257, 2, 2, 3), "257 images")):
        with pytest.raises(ValueError, match=words) as caught:
            check(*shape)
        assert caught.value.get_http_status_code() == 400
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("MOSIS_MAX_IMAGES", "1")
    monkeypatch.setenv("MOSIS_MAX_IMAGE_PIXELS", "6")
    assert check(1, 2, 3, 3) == (1, 2, 3, 3)
    for shape in ((2, 2, 3, 3), (1, 7, 1, 3)):
        with pytest.raises(ValueError, match="more than"):
            check(*shape)
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv("MOSIS_MAX_IMAGES", wrong)
        with pytest.raises(ValueError, match="MOSIS_MAX_IMAGES must be a whole number above 0"):
            check(2, 3, 3)
