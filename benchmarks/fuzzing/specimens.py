"""Good data for every reader, small and in its real format: what is then damaged.

A maker fills an empty folder with folders, each of which is one good input.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tasks.clips import ClipWriter, make_clip_id, write_manifest
from tasks.formats.coco import CocoAnnotation, CocoFile, CocoImage, write_coco
from tasks.formats.ytvis import Track, Video, YtvisFile, write_ytvis
from tasks.picture_codec import encode_rle

_SIZE = (48, 64)
_VIDEOS = (
    ("a.mp4", "mpeg4", "yuv420p"),
    ("b.mkv", "libx264", "yuv420p"),
    ("c.webm", "libvpx", "yuv420p"),
    ("d.avi", "mjpeg", "yuvj420p"),
    ("e.mov", "libx264", "yuv420p"),
    ("f.ts", "mpeg2video", "yuv420p"),
    ("g.gif", "gif", "rgb8"),
    ("h.flv", "flv", "yuv420p"),
    ("i.y4m", "wrapped_avframe", "yuv420p"),
    ("j.mp4", "libx265", "yuv420p"),
)


def draw(index: int) -> np.ndarray:
    """(48, 64, 3) uint8: a square that moves 2 px a frame over a slope of colours."""
    rows, columns = np.indices(_SIZE)
    frame = np.stack([rows * 4, columns * 3, rows + columns], axis=-1).astype(np.uint8)
    frame[10:26, 4 + 2 * index : 20 + 2 * index] = (230, 120, 30)
    return frame


def mask(index: int) -> np.ndarray:
    found = np.zeros(_SIZE, bool)
    found[10:26, 4 + 2 * index : 20 + 2 * index] = True
    return found


def _case(folder: Path, name: object = 0) -> Path:
    path = folder / str(name)
    path.mkdir()
    return path


def make_video(folder: Path) -> None:
    """Ten frames in each of the usual containers and codecs, as far as the installed FFmpeg has them."""
    import av

    options = {"threads": "1", "x265-params": "log-level=none:pools=none"}
    for name, codec, pixel_format in _VIDEOS:
        # Bit-exact: without dates, versions and random ids, so that a seed means the same input tomorrow.
        path = folder / name.partition(".")[0] / name
        path.parent.mkdir()
        with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
            try:
                stream: Any = container.add_stream(codec, rate=Fraction(24), options=options)
            except (ValueError, av.error.FFmpegError):
                shutil.rmtree(path.parent)
                continue
            stream.height, stream.width = _SIZE
            stream.pix_fmt = pixel_format
            stream.codec_context.thread_count = 1
            for index in range(10):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(index), format="rgb24")))
            container.mux(stream.encode())


def make_pictures(folder: Path) -> None:
    """A folder for each kind: JPEG and PNG whose bytes are kept, and those that are decoded."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("jpg", "RGB", {}),
        ("jpg", "L", {}),
        ("jpg", "CMYK", {}),
        ("jpg", "RGB", {"progressive": True}),
        ("png", "RGB", {}),
        ("png", "RGBA", {}),
        ("png", "P", {}),
        ("png", "I;16", {}),
        ("bmp", "RGB", {}),
        ("tif", "RGB", {"compression": "tiff_lzw"}),
        ("tif", "RGB", {}),
        ("webp", "RGB", {}),
    ]
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds.append(("jpg", "RGB", {"exif": turned}))
    for number, (suffix, mode, options) in enumerate(kinds):
        (folder / f"{number:02d}").mkdir()
        for index in range(3):
            picture = Image.fromarray(draw(index))
            picture = picture.convert("L").convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
            picture.save(folder / f"{number:02d}" / f"{index}.{suffix}", **options)


def make_youtube_vis(folder: Path) -> None:
    from tests.miniature_youtube_vis import MiniVideo, write_all_frames, write_release

    videos = [MiniVideo(60, range(0, 20, 5), hidden=(1,)), MiniVideo(63, range(5, 15, 5), category=2)]
    folder = _case(folder)
    write_release(folder, videos)
    write_all_frames(folder, videos[1:])
    write_release(folder, [MiniVideo(1, range(0, 15, 5))], split="valid", year=2021, published=False)


def make_nuscenes(folder: Path) -> None:
    from tests import miniature_nuscenes

    miniature_nuscenes.make_nuscenes(_case(folder)).write()


def make_nuimages(folder: Path) -> None:
    from tests import miniature_nuscenes

    miniature_nuscenes.make_nuimages(_case(folder)).write()


def make_davis(folder: Path) -> None:
    from tests import miniature_davis

    folder = _case(folder)
    miniature_davis.write_davis_2017(folder)
    (folder / "groups.json").write_text(json.dumps({"dogs-jump": [[1, 2]], "lindy-hop": [[1], [2]]}))


def make_folders(folder: Path) -> None:
    from tests import miniature_davis

    for make in ("davis_2016", "flat", "segtrack", "fbms", "youtube_vos"):
        getattr(miniature_davis, f"write_{make}")(folder / make)


def make_clips(folder: Path) -> None:
    """Archives: with truth and optical flow, with truth of one frame, of PNG without truth."""
    for number in range(3):
        _write_clips(_case(folder, number), [number])


def make_manifest(folder: Path) -> None:
    _write_clips(_case(folder), range(3))


def _write_clips(folder: Path, numbers: Iterable[int]) -> None:
    entries = []
    for number in numbers:
        identity = make_clip_id("0" * 64, {}, number)
        known = {"clip_id": identity, "source": "s3://bucket/ä.mp4", "source_sha256": "0" * 64}
        with ClipWriter(folder, **known, lossless=number == 2, split="train", ingest={"kind": "toy"}) as writer:  # type: ignore[arg-type]
            for index in range(4):
                masks = {1: mask(index), 7: mask(index + 4)} if number == 0 or (number, index) == (1, 2) else None
                flow = np.ones((*_SIZE, 2), np.float32) if number == 0 and index < 3 else None
                writer.add(draw(index), 41_667 * index, masks=masks, flow=flow)
        entries.append(writer.entry)
    write_manifest(folder, entries)


def make_labels(folder: Path) -> None:
    """COCO and YouTube-VIS files with every way to write a mask."""
    rle, plain = encode_rle(mask(0)), {"size": list(_SIZE), "counts": [0, _SIZE[0] * _SIZE[1]]}
    images = [CocoImage(number, f"ä/{number}.jpg", *_SIZE, {"timestamp_us": 41_667 * number}) for number in range(3)]
    boxes = [4.0, 10.0, 16.0, 16.0]
    found = [CocoAnnotation(number, number % 3, rle, boxes, 256.0, extra={"score": 0.5}) for number in range(4)]
    coco, ytvis = _case(folder, "coco") / "coco.json", _case(folder, "ytvis") / "ytvis.json"
    write_coco(coco, CocoFile(images, found, {"info": {"year": 2019}}))
    document = json.loads(coco.read_text())
    document["annotations"][1]["segmentation"] = plain
    document["annotations"][2]["segmentation"] = [[4, 10, 20, 10, 20, 26, 4, 26], [1.5, 1, 3, 1, 3, 3]]
    coco.write_text(json.dumps(document))
    tracks = [Track(1, 5, [None, rle], [None, boxes], [None, 256.0]), Track(2, 5, [rle] * 2, [boxes] * 2, [256.0] * 2)]
    videos = [Video(5, ["v/00000.jpg", "v/00005.jpg"], *_SIZE), Video(6, [], 8, 8)]
    write_ytvis(ytvis, YtvisFile(videos, tracks))


def make_params(folder: Path) -> None:
    from benchmarks.harness import ROOT

    shutil.copyfile(ROOT / "params.yaml", _case(folder, "all") / "params.yaml")
    document = {
        "ingest": {"sources": ["synthetic"], "synthetic": {"objects": [1, 3], "shapes": ["circle"]}},
        "train": {"method": "mosis", "iterations": 20},
    }
    (_case(folder, "small") / "params.yaml").write_text(yaml.safe_dump(document))
