"""Frames of many videos through one scaler come out as through one of their own."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tasks.sources import decoding


def test_a_scaler_used_for_another_video_before_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal size and pixel format, and of another colour matrix and range, which it could mistake for the last."""
    import av

    frames: list[Any] = []
    for size, colour in (((64, 48), (2, 1)), ((64, 48), (1, 5)), ((96, 48), (2, 5))):
        frame: Any = av.VideoFrame(*size, "yuv420p")
        for index, plane in enumerate(frame.planes):
            plane.update(bytes([90 + 50 * index]) * plane.buffer_size)
        frame.color_range, frame.colorspace = colour
        frames.append(frame)
    alone = []
    for frame in frames:
        monkeypatch.setattr(decoding, "_scalers", threading.local())
        alone.append(decoding.to_rgb(frame, max_side=None))
    assert not np.array_equal(alone[0], alone[1])
    monkeypatch.setattr(decoding, "_scalers", threading.local())
    for index in (0, 1, 0, 2, 1, 2, 0):
        np.testing.assert_array_equal(decoding.to_rgb(frames[index], max_side=None), alone[index])
