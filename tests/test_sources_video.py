"""Real containers and codecs, small: times, colours, sizes, rotation, resampling, folders, URLs."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from conftest import moving_square, write_video
from PIL import Image

from tasks.clips import ClipEntry, ClipReader
from tasks.errors import SourceError
from tasks.params import IngestParams
from tasks.sources import open_source
from tasks.sources.places import hide_credentials, join_url, list_files, open_local
from tasks.sources.segments import number_segments, resample


def ingest(url: Path | str, folder: Path, **params: Any) -> list[ClipEntry]:
    (job,) = open_source(str(url), IngestParams(**params))
    folder.mkdir(exist_ok=True)
    return pickle.loads(pickle.dumps(job)).run(folder)  # noqa: S301 - jobs travel to other processes


def read(entry: ClipEntry) -> tuple[list[np.ndarray], tuple[int, ...]]:
    with ClipReader(entry.path) as clip:
        return list(clip.frames()), clip.info.timestamps_us


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx265", "yuv420p10le"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "libx264", "yuvj420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
    ],
)
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str, pixel_format: str) -> None:
    frames = moving_square(6)
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    write_video(tmp_path / name, frames, codec=codec, pixel_format=pixel_format, options=options)
    (entry,) = ingest(tmp_path / name, tmp_path / "out")
    decoded, times = read(entry)
    assert len(decoded) == 6
    assert difference(decoded[5], frames[5]) < 8
    np.testing.assert_allclose(times, np.arange(6) / 24 * 1e6, atol=600)
    assert entry.note is None
    assert entry.source == str(tmp_path / name)


@pytest.mark.parametrize("pixel_format", ["gray", "bgra", "yuv444p", "bgr0", "yuv420p"])
def test_odd_sizes_grey_and_alpha(tmp_path: Path, pixel_format: str) -> None:
    frames = moving_square(3, height=47, width=63)
    write_video(tmp_path / "a.mkv", frames, codec="ffv1", pixel_format=pixel_format)
    expected = frames[2]
    if pixel_format == "gray":
        expected = cv2.cvtColor(cv2.cvtColor(expected, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    (entry,) = ingest(tmp_path / "a.mkv", tmp_path / "out")
    assert difference(read(entry)[0][2], expected) < 8


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_turned_phone_gives_upright_video(tmp_path: Path, rotation: int) -> None:
    frames = moving_square(3)
    write_video(tmp_path / "a.mp4", frames, rotation=rotation)
    (entry,) = ingest(tmp_path / "a.mp4", tmp_path / "out")
    assert difference(read(entry)[0][0], np.rot90(frames[0], rotation // 90)) < 8


def test_ten_bits_and_full_range_have_right_colours(shared_data: Path, tmp_path: Path) -> None:
    """Against the colour matrices of BT.601 and BT.709 written out; chroma is sited differently, so by the mean."""
    import av

    for name in ("h264_10bits.mp4", "h265_10bits.mp4", "bt709_full_range.mp4"):
        path = shared_data / "codecs" / name
        (entry,) = ingest(path, tmp_path / name, max_seconds=0.1, jpeg_quality=100)
        with av.open(str(path)) as container:
            expected = _convert_by_hand(next(container.decode(video=0)))
        got = read(entry)[0][0].astype(float)
        assert np.abs(got.mean((0, 1)) - expected.mean((0, 1))).max() < 2.5
        assert np.median(np.abs(got - expected)) < 2.5


def _convert_by_hand(frame: Any) -> np.ndarray:
    """(H, W, 3) float RGB of a 4:2:0 frame, 8 or 10 bits, BT.709 where it says so, else BT.601."""
    ten_bits = "10" in frame.format.name
    planes = []
    for plane in frame.planes:
        values = np.frombuffer(plane, np.uint16 if ten_bits else np.uint8).reshape(plane.height, -1)
        planes.append(values[:, : plane.width] / (4.0 if ten_bits else 1.0))
    y = planes[0]
    cb, cr = (p.repeat(2, 0).repeat(2, 1)[: y.shape[0], : y.shape[1]] - 128 for p in planes[1:])
    if frame.color_range != 2:
        y, cb, cr = (y - 16) * 255 / 219, cb * 255 / 224, cr * 255 / 224
    kr, kb = (0.2126, 0.0722) if frame.colorspace == 1 else (0.299, 0.114)
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return np.clip(np.stack([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue], -1), 0, 255)


def test_real_timestamps_are_kept(tmp_path: Path) -> None:
    times_ms = [0, 40, 90, 120, 160, 400]
    write_video(tmp_path / "a.mkv", moving_square(6), times_ms=times_ms)
    (entry,) = ingest(tmp_path / "a.mkv", tmp_path / "out")
    assert read(entry)[1] == tuple(1000 * time for time in times_ms)
    assert entry.rate_hz == 25


def test_streams_whose_times_start_again_go_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", moving_square(10), codec="libx264")
    path.write_bytes(path.read_bytes() * 2)
    (entry,) = ingest(path, tmp_path / "out")
    times = read(entry)[1]
    assert len(times) == 20
    np.testing.assert_allclose(np.diff(times), 41667, atol=2)


def test_streams_without_times_take_the_average_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.h264", moving_square(5), codec="libx264")
    (entry,) = ingest(tmp_path / "a.h264", tmp_path / "out")
    assert read(entry)[1] == (0, 40_000, 80_000, 120_000, 160_000)


@dataclass(frozen=True)
class At:
    time_us: int


def test_resampling_takes_the_nearest_frames_and_none_twice() -> None:
    def kept(times: list[int], from_hz: float, to_hz: float | None) -> list[int]:
        return [frame.time_us for frame in resample([At(t) for t in times], from_hz=from_hz, to_hz=to_hz)]

    # wanted: 0, 100, 200, 300 ms
    assert kept([0, 60_000, 110_000, 190_000, 230_000, 290_000], 20, 10) == [0, 110_000, 190_000, 290_000]
    # nothing near 100 and 200 ms: a gap stays one
    assert kept([0, 20_000, 310_000, 330_000], 50, 10) == [0, 310_000]
    # slower than wanted, or as fast: all stay
    assert kept([0, 100_000], 10, 20) == [0, 100_000]
    assert kept([0, 41_000, 84_000], 24.1, 24) == [0, 41_000, 84_000]
    assert kept([0, 1, 2], 1e6, None) == [0, 1, 2]
    assert kept([], 50, 10) == []


def test_cutting_leaves_no_frame_alone() -> None:
    def lengths(count: int, clip_us: int) -> list[int]:
        numbers = [number for number, _ in number_segments([At(10 * i) for i in range(count)], clip_us)]
        return [numbers.count(number) for number in sorted(set(numbers))]

    assert lengths(0, 30) == []
    assert lengths(1, 30) == [1]
    assert lengths(6, 30) == [3, 3]
    assert lengths(7, 30) == [3, 4]
    assert lengths(8, 30) == [3, 3, 2]
    assert lengths(5, 1) == [2, 3]


def test_long_video_is_cut_scaled_and_resampled(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(49))
    entries = ingest(tmp_path / "a.mp4", tmp_path / "out", rate_hz=12.0, max_side=32 * 2, clip_seconds=1.0)
    assert [entry.frames for entry in entries] == [12, 13]
    assert len({entry.clip_id for entry in entries}) == 2
    assert read(entries[1])[1][0] == 1_000_000
    (small,) = ingest(tmp_path / "a.mp4", tmp_path / "out", max_seconds=0.5, max_side=64)
    assert small.frames == 12


def test_scaling_keeps_the_shape(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(3, height=96, width=160))
    (entry,) = ingest(tmp_path / "a.mp4", tmp_path / "out", max_side=80)
    assert (entry.width, entry.height) == (80, 48)
    expected = cv2.resize(moving_square(3, height=96, width=160)[1], (80, 48), interpolation=cv2.INTER_AREA)
    assert difference(read(entry)[0][1], expected) < 8


def test_clip_id_follows_content_and_parameters_and_not_the_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_square(4))
    (first,) = ingest(path, tmp_path / "out")
    (again,) = ingest(path.rename(tmp_path / "b.mp4"), tmp_path / "out2")
    assert first.clip_id == again.clip_id
    assert ingest(tmp_path / "b.mp4", tmp_path / "out", jpeg_quality=80)[0].clip_id != first.clip_id
    assert ingest(tmp_path / "b.mp4", tmp_path / "out", min_rate_hz=20)[0].clip_id == first.clip_id


def write_pictures(folder: Path, count: int = 3, suffix: str = ".jpg") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{8 + index}{suffix}" for index in range(count)]
    for path, frame in zip(paths, moving_square(count), strict=True):
        Image.fromarray(frame).save(path)
    return paths


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_folder_of_pictures_in_natural_order_keeps_bytes(tmp_path: Path, suffix: str) -> None:
    paths = write_pictures(tmp_path / "pictures", 3, suffix)
    (entry,) = ingest(tmp_path / "pictures", tmp_path / "out", image_rate_hz=24)
    with ClipReader(entry.path) as clip:
        assert [clip.frame_bytes(i) for i in range(3)] == [path.read_bytes() for path in paths]
        assert clip.info.timestamps_us == (0, 41_667, 83_333)


def test_pictures_that_are_not_plain_become_upright_8_bit_rgb(tmp_path: Path) -> None:
    frame = moving_square(1)[0]
    grey16 = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.uint16) * 257
    kinds = {
        "alpha.png": Image.fromarray(np.dstack([frame, np.full(frame.shape[:2], 9, np.uint8)])),
        "palette.png": Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE),
        "depth.png": Image.fromarray(grey16),
        "plain.bmp": Image.fromarray(frame),
        "grey.png": Image.fromarray(frame).convert("L"),
    }
    for name, image in kinds.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for index in range(2):
            image.save(folder / f"{index}{Path(name).suffix}")
        grey = name.startswith(("depth", "grey"))
        expected = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) if grey else frame
        (entry,) = ingest(folder, tmp_path / "out", image_rate_hz=24)
        assert difference(read(entry)[0][1], expected) < 5, name


def test_exif_orientation_is_honoured_once(tmp_path: Path) -> None:
    frame = moving_square(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    (tmp_path / "turned").mkdir()
    for index in range(2):
        Image.fromarray(frame).save(tmp_path / "turned" / f"{index}.jpg", exif=exif, quality=95)
    (entry,) = ingest(tmp_path / "turned", tmp_path / "out", image_rate_hz=24)
    assert difference(read(entry)[0][0], np.rot90(frame, -1)) < 8


def test_folders_of_videos_and_pictures(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_pictures(root / "sequence_b")
    write_pictures(root / "sequence_a")
    write_pictures(root / "videos")  # thumbnails beside a video
    write_video(root / "videos" / "v10.mp4", moving_square(3))
    write_video(root / "videos" / "v9.MP4", moving_square(3))
    (root / "videos" / "._v9.mp4").write_bytes(b"what a Mac leaves")
    (root / "notes.txt").write_text("text")
    jobs = open_source(str(root), IngestParams(image_rate_hz=24))
    names = [str(Path(job.source).relative_to(root)) for job in jobs]
    assert names == ["sequence_a", "sequence_b", "videos/v9.MP4", "videos/v10.mp4"]


def test_a_url_of_any_kind_is_copied_decoded_and_removed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(4))
    memory = fsspec.filesystem("memory")
    memory.pipe("/one-video/sub/a.mp4", (tmp_path / "a.mp4").read_bytes())
    try:
        (entry,) = ingest("memory://one-video", tmp_path / "out")
    finally:
        memory.rm("/one-video", recursive=True)
    assert entry.source == "memory:///one-video/sub/a.mp4"
    assert os.listdir(tmp_path / "out") == [entry.path.name]
    assert entry.clip_id == ingest(tmp_path / "a.mp4", tmp_path / "local")[0].clip_id


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:8080/a.mp4?token=secret#secret", "https://host:8080/a.mp4"),
        ("zip://a.mp4::s3://key:secret@bucket/x.zip?secret=1", "zip://a.mp4::s3://bucket/x.zip"),
        ("s3://bucket/folder/a.mp4", "s3://bucket/folder/a.mp4"),
        ("/data/50% off?/a@b.mp4", "/data/50% off?/a@b.mp4"),
    ],
)
def test_credentials_are_never_shown(url: str, shown: str) -> None:
    assert hide_credentials(url) == shown
    if "secret" in url:
        with pytest.raises(SourceError) as caught:
            list_files(url.replace("https", "nosuch").replace("s3", "nosuch"))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile a.ts\nduration 1\n",
    ],
)
def test_a_playlist_cannot_make_ffmpeg_read_other_files(tmp_path: Path, text: str) -> None:
    write_video(tmp_path / "a.ts", moving_square(30), codec="libx264")
    (tmp_path / "playlist.mp4").write_text(text)
    with pytest.raises(SourceError, match="not a video"):
        ingest(tmp_path / "playlist.mp4", tmp_path / "out")


def test_a_file_s_name_in_a_store_is_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write into a bucket must not have secrets put into URLs: ${NAME} counts where the user wrote it."""
    monkeypatch.setenv("PLANTED", "secret-value")
    memory = fsspec.filesystem("memory")
    memory.pipe("/names/${PLANTED}.mp4", b"no video")
    try:
        (place,) = list_files("memory://names")
        with open_local(place, tmp_path) as path:
            assert path.read_bytes() == b"no video"
    finally:
        memory.rm("/names", recursive=True)
    assert "secret-value" not in repr(place) + place.url


def test_no_source_takes_a_password_in_its_url() -> None:
    for kind in ("", "davis:", "nuscenes:", "youtube_vis:"):
        with pytest.raises(SourceError, match="holds a password or key") as error:
            open_source(f"{kind}https://me:hidden@host/data", IngestParams())
        assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("/data/set", "/data/set/a/b.json"),
        ("s3://bucket/set/", "s3://bucket/set/a/b.json"),
        ("simplecache::s3://bucket/set", "simplecache::s3://bucket/set/a/b.json"),
        ("zip://inner::s3://bucket/x.zip", "zip://inner/a/b.json::s3://bucket/x.zip"),
        ("simplecache::zip://inner::s3://bucket/x.zip", "simplecache::zip://inner/a/b.json::s3://bucket/x.zip"),
    ],
)
def test_a_file_below_a_root_of_any_kind(root: str, joined: str) -> None:
    assert join_url(root, "a/b.json") == joined
