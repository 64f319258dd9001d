"""The split of the training videos by class, of the motion-aided box-supervision paper (section 3.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

VIDEOS_A_CLASS = 10


def draw_held_out(classes: Mapping[int, frozenset[int]], seed: int) -> frozenset[int]:
    """Ids of the videos to hold out: of each class ten that show it; all where there are no more.

    classes: video id -> the categories annotated in it. A video may be drawn for more than one class, so fewer than ten
    times the classes are held out: the paper has 391 for 40. Its own list is not published; here those are drawn whose
    hash with the seed and the class is smallest, which depends neither on the order of the file nor on a generator.
    """
    by_class: dict[int, list[int]] = {}
    for video, categories in classes.items():
        for category in categories:
            by_class.setdefault(category, []).append(video)
    drawn: set[int] = set()
    for category, videos in by_class.items():
        drawn.update(sorted(videos, key=lambda video: _place(seed, category, video))[:VIDEOS_A_CLASS])
    return frozenset(drawn)


def _place(seed: int, category: int, video: int) -> bytes:
    return hashlib.sha256(f"{seed} {category} {video}".encode()).digest()
