"""Whose fault it is where a video cannot be labelled; the rest of intake is in test_library and test_new_video."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import moving_square, write_video

from tasks import intake, label, params
from tasks.errors import ModelError
from tasks.files import sha256_file
from tasks.inbox import Arrival
from tasks.intake import Request
from tasks.sources.places import Place


@dataclasses.dataclass
class NoModel:
    """Stands for a loaded model: nothing gets as far as using it."""

    lineage: dict[str, Any]


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    video = write_video(tmp_path / "a.mp4", moving_square(6))
    arrival = Arrival(Place("a.mp4", str(video)), video.stat().st_size, "-", time.time())
    monkeypatch.setattr(intake, "_load", lambda request: NoModel({}))
    version: Any = SimpleNamespace(uri="models:/mosis/1")
    settings = params.parse({"train": {"device": "cuda"}})
    return Request(arrival, video, sha256_file(video), tmp_path, settings, version, tmp_path)


@pytest.mark.parametrize("said", [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported late",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "HIP out of memory. Tried to allocate 20.00 GiB",
])  # fmt: skip
def test_a_device_that_fails_is_no_fault_of_the_video(
    said: str, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is at hand for it: what torch says there is raised in its place."""
    monkeypatch.setattr(label, "label_clips", _failing(said))
    with pytest.raises(ModelError, match=f"^cuda: {said[:20]}") as caught:
        intake.make_entry(request_, request_.workspace / "entry")
    assert "\n" not in str(caught.value)
    assert not (request_.workspace / "entry").exists()


def test_what_fails_by_the_video_itself_stays_what_it_is(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "label_clips", _failing("The size of tensor a (3) must match the size of tensor b (4)"))
    with pytest.raises(RuntimeError, match="size of tensor"):
        intake.make_entry(request_, request_.workspace / "entry")


def _failing(said: str) -> Any:
    def label_clips(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    return label_clips
