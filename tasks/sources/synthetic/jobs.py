"""Synthetic videos as clip archives, one job a video."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from tasks.errors import ParamsError
from tasks.sources.synthetic.draw import Draw
from tasks.sources.synthetic.pictures import list_pictures, open_texture
from tasks.sources.synthetic.render import render
from tasks.sources.synthetic.scene import draw_scene, timestamps_us

if TYPE_CHECKING:
    from tasks.clips import ClipEntry
    from tasks.params import IngestParams, SyntheticParams

GENERATOR = 1
"""Raised whenever the same parameters begin to give other pixels, so that clips get other ids."""
_LATER = {"camera_shake": 0.0, "camera_zoom": 0.0, "texture_contrast": 1.0}
"""Settings that came after the first clips, and where they change nothing: clips made before keep their ids."""
_SPLIT_STREAM = 2**32
"""Set apart from the video numbers, which seed the videos."""
_MAX_BACKGROUND_SIDE = 16_384


@dataclass(frozen=True)
class SyntheticJob:
    """One generated video -> one clip. pictures_sha256 stands for the pictures' content, None where none are used."""

    params: SyntheticParams
    index: int
    split: str
    pictures_sha256: str | None

    @property
    def source(self) -> str:
        return f"synthetic/seed-{self.params.seed}/video-{self.index:05d}"

    def run(self, folder: Path) -> list[ClipEntry]:
        """Write the clip into `folder`. SourceError for a broken picture, StorageError where the disk refuses."""
        from tasks.clips import ClipWriter, make_clip_id

        ingest = self._ingest()
        content = json.dumps([ingest, self.index], sort_keys=True)
        source_sha256 = hashlib.sha256(content.encode()).hexdigest()
        clip_id = make_clip_id(source_sha256, {"split": self.split}, 0)
        scene = draw_scene(self.params, self.index, open_texture(self.params.pictures))
        times = timestamps_us(self.params)
        with ClipWriter(
            folder, clip_id=clip_id, source=self.source, source_sha256=source_sha256, split=self.split, ingest=ingest
        ) as writer:
            for t, one in enumerate(render(scene, optical_flow=self.params.dense_flow)):
                masks = dict(enumerate(one.masks))
                last = t + 1 == scene.frames
                writer.add(encode_png(one.image), times[t], masks=masks, flow=None if last else one.flow_uv)
        return [writer.entry]

    def _ingest(self) -> dict[str, Any]:
        """What shapes the pixels: not the number of videos, and of the pictures their content, not their place."""
        settings = {key: value for key, value in asdict(self.params).items() if key not in ("videos", "pictures")}
        known = {key: value for key, value in settings.items() if _LATER.get(key) != value}
        return known | {"generator": GENERATOR, "pictures_sha256": self.pictures_sha256}


def open_synthetic(params: IngestParams) -> list[SyntheticJob]:
    """One job per video, each with its split. Raises ParamsError for sizes that cannot be, SourceError for pictures."""
    synthetic = params.synthetic
    _check(synthetic, params.min_rate_hz)
    digest = _digest_pictures(list_pictures(synthetic.pictures)) if synthetic.pictures else None
    splits = assign_splits(synthetic.videos, synthetic.seed)
    return [SyntheticJob(synthetic, index, split, digest) for index, split in enumerate(splits)]


def assign_splits(videos: int, seed: int) -> list[str]:
    """Split of each video, 70 / 15 / 15 by video (thesis 4.1) in a seeded order; no split is empty from 3 videos on."""
    validation = max(1, videos * 15 // 100) if videos >= 3 else 0
    test = max(1, videos - (videos * 70 + 50) // 100 - validation) if videos >= 2 else 0
    names = ["train"] * (videos - validation - test) + ["val"] * validation + ["test"] * test
    order = Draw(seed, _SPLIT_STREAM).order(videos)
    return [names[place] for place in order]


def encode_png(image: np.ndarray) -> bytes:
    """PNG of (H, W, 3) uint8 RGB whose bytes depend on the picture alone.

    Deflate's search for repeats differs between the zlib that OpenCV carries on one platform and on another, so it is
    left out: Huffman coding of one fixed filter has nothing to choose. On noisy pictures it is smaller, too.
    """
    options = [
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH),
    ]
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done
    return bytes(data)


def _check(params: SyntheticParams, min_rate_hz: float) -> None:
    where = "ingest.synthetic"
    if params.rate_hz < min_rate_hz:
        raise ParamsError(f"{where}.rate_hz: {params.rate_hz} is below ingest.min_rate_hz {min_rate_hz}: raise it")
    side = max(params.height, params.width)
    if params.radius[1] > side:
        raise ParamsError(f"{where}.radius: {params.radius[1]} is larger than the frame, {side} pixels: lower it")
    if params.background_zoom[1] * side > _MAX_BACKGROUND_SIDE:
        raise ParamsError(
            f"{where}.background_zoom: {params.background_zoom[1]} makes a background of more than "
            f"{_MAX_BACKGROUND_SIDE} pixels a side: lower it"
        )


def _digest_pictures(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
