"""Optical flow by dense inverse search (Kroeger et al., ECCV 2016), through OpenCV: nothing is learnt."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

_MIN_SIDE = 16
"""OpenCV's dense inverse search reads outside its arrays, and ends the process, for frames much lower than this."""


def search_flow(
    frame_a: np.ndarray, frame_b: np.ndarray, *, preset: str = "medium", enlarge: float = 1.0
) -> np.ndarray:
    """flow_uv (H, W, 2) float32 pixels: what is at x in frame a is at x + flow_uv(x) in frame b.

    Frames: (H, W, 3) uint8 RGB of one size, any size. preset: ultrafast, fast or medium. enlarge: how many times the
    frames are enlarged before the search.
    """
    height, width = frame_a.shape[:2]
    searched = (max(round(width * enlarge), _MIN_SIDE), max(round(height * enlarge), _MIN_SIDE))
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (frame_a, frame_b)]
    greys = [cv2.resize(grey, searched, interpolation=cv2.INTER_LINEAR) for grey in greys]
    # A new search for each pair: its buffers remember an earlier size.
    field = np.asarray(_open_search(preset).calc(greys[0], greys[1], None))
    if searched == (width, height):
        return field
    scale = np.array([width / searched[0], height / searched[1]], np.float32)
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) * scale


def _open_search(preset: str) -> Any:
    # Looked up by name: OpenCV's type stubs do not know the class' arguments.
    return cv2.__dict__["DISOpticalFlow_create"](cv2.__dict__[f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"])
