"""Fixtures and small helpers that every test file may use. Heavy libraries are imported inside, where they are used."""

from __future__ import annotations

import os
import shutil
import signal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Ctrl-C is for the processes that tests start, too: run in the background by a shell, tests begin with SIGINT
    ignored, and whatever they start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with tiny synthetic parameters, as the current folder."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    write_params(folder, tiny_synthetic())
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real video that is not part of the repository; the test skips where it is absent."""
    folder = Path(os.environ.get("MOSIS_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real video in {folder}, or in the folder that MOSIS_SHARED_DATA names")
    return folder


def tiny_synthetic(**changes: Any) -> dict[str, Any]:
    """Document for params.yaml: 2 generated videos of 6 frames at 64 x 64. `changes` go into ingest.synthetic."""
    synthetic = {"videos": 2, "frames": 6, "height": 64, "width": 64, "radius": [6.0, 12.0], **changes}
    return {
        "ingest": {"sources": ["synthetic"], "workers": 1, "synthetic": synthetic},
        "pairs": {"height": 64, "width": 64},
    }


def tiny_training(**changes: Any) -> dict[str, Any]:
    """Document for params.yaml: 4 generated videos of 8 frames, six iterations. `changes` go into train."""
    document = tiny_synthetic(videos=4, frames=8, speed=[2.0, 3.5])
    document["pairs"] |= {"workers": 1, "train_share": 0.5, "val_share": 0.5}
    document["train"] = {
        "iterations": 6, "batch_size": 2, "validate_every": 3, "validation_images": 4, "checkpoint_every": 2,
        "checkpoint_seconds": 0,
        "warmup_iterations": 2, "workers": 1, **changes,
    }  # fmt: skip
    return document


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after ingest and pairs, of `tiny_training`: not to be written to."""
    from tasks import ingest, pairs, params

    folder = tmp_path_factory.mktemp("prepared")
    settings = params.parse(tiny_training())
    ingest.run(settings, folder)
    pairs.run(settings, folder)
    return folder


@pytest.fixture
def prepared_workspace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace after ingest and pairs, as the current folder; nothing is tracked."""
    folder = Path(shutil.copytree(prepared / "data", tmp_path / "workspace" / "data")).parent
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For torch: tensors as small as a test's gain nothing from a second thread, and on a busy machine wait for it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_params(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def moving_square(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """`count` frames, (height, width, 3) uint8 RGB: an orange square that moves 2 px a frame over blue."""
    frames = []
    for index in range(count):
        frame = np.full((height, width, 3), (20, 40, 160), np.uint8)
        left = (2 * index) % (width - 16)
        frame[16:32, left : left + 16] = (230, 120, 30)
        frames.append(frame)
    return frames


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    rate: int | Fraction = 24,
    codec: str = "mpeg4",
    *,
    pixel_format: str = "yuv420p",
    times_ms: Sequence[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode (H, W, 3) uint8 RGB frames with PyAV. times_ms: timestamps instead of an even rate (mkv, mp4).

    rotation: degrees counterclockwise that a player must turn the picture, as phones write it.
    """
    import av

    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = None
        for index, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options or {})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixel_format
                stream.bit_rate = 4_000_000
                if rotation:
                    stream.set_display_rotation(rotation)
                if times_ms is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = index if times_ms is None else times_ms[index]
            picture.time_base = 1 / Fraction(rate) if times_ms is None else Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def claim_png_size(data: bytes, width: int, height: int) -> bytes:
    """The PNG with another size in its header, checksum and all."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
