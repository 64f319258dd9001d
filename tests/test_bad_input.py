"""What bad input gets: one line that says what to do, the right exit code, good files done, nothing half-written.

Each case runs the real command, beside a good file where the job can go on without the bad one.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import claim_png_size, moving_square, write_params, write_video
from PIL import Image

from tasks import ingest, params
from tasks.clips import ClipReader, open_clips
from tasks.errors import MosisError


def command(workspace: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks", "ingest"], cwd=workspace, capture_output=True, text=True, timeout=120, **options
    )


def fail_in_one_line(workspace: Path, **changes: Any) -> str:
    """The message of an ingest that must fail, after making sure that it left nothing."""
    document = {"ingest": {"sources": ["input"], "workers": 1, **changes}}
    with pytest.raises(MosisError) as caught:
        ingest.run(params.parse(document), workspace)
    message = str(caught.value)
    assert "\n" not in message
    assert not (workspace / "data").is_dir() or os.listdir(workspace / "data") == []
    return message


def _empty_folder(folder: Path) -> None:
    pass


def _zero_bytes(folder: Path) -> None:
    (folder / "a.mp4").write_bytes(b"")


def _cut_short(folder: Path) -> None:
    """The index stands at the end of an mp4 by default, so nothing can be read."""
    path = write_video(folder / "a.mp4", moving_square(30))
    path.write_bytes(path.read_bytes()[:-2000])


def _text(folder: Path) -> None:
    (folder / "a.mp4").write_text("This is no video.\n" * 100)


def _one_frame(folder: Path) -> None:
    write_video(folder / "a.mp4", moving_square(1))


def _five_hertz(folder: Path) -> None:
    write_video(folder / "a.mp4", moving_square(10), rate=5)


def _unknown_codec(folder: Path) -> None:
    path = write_video(folder / "a.mp4", moving_square(10), codec="libx264")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))


def _sound_only(folder: Path) -> None:
    import av

    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def _pictures(folder: Path) -> None:
    for index, frame in enumerate(moving_square(3)):
        Image.fromarray(frame).save(folder / f"{index}.png")


def _huge_claim(folder: Path) -> None:
    _pictures(folder)
    for path in folder.iterdir():
        path.write_bytes(claim_png_size(path.read_bytes(), 60_000, 60_000))


def _pictures_cut_short(folder: Path) -> None:
    for index, frame in enumerate(moving_square(3)):
        Image.fromarray(frame).save(folder / f"{index}.jpg")
        path = folder / f"{index}.jpg"
        path.write_bytes(path.read_bytes()[:-60])


def _pictures_of_two_sizes(folder: Path) -> None:
    _pictures(folder)
    Image.fromarray(moving_square(1, 20, 20)[0]).save(folder / "9.png")


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (_empty_folder, {}, "input: holds no video and no pictures: check the folder"),
        (_zero_bytes, {}, "is empty (0 bytes): copy or download it again"),
        (_cut_short, {}, "is not a video that can be read (broken, cut short, or another kind of file)"),
        (_text, {}, "is not a video that can be read (broken, cut short, or another kind of file)"),
        (_one_frame, {}, "has one frame: motion needs at least two"),
        (
            _five_hertz,
            {},
            "5.0 Hz is below 12 Hz: too slow to follow motion from frame to frame (lower ingest.min_rate",
        ),
        (_unknown_codec, {}, "its codec is unknown here: convert it, e.g. `ffmpeg"),
        (_sound_only, {}, "has no video stream"),
        (_pictures, {}, "a folder of images carries no timestamps: state its rate with `--image-rate 24`"),
        (_pictures, {"image_rate_hz": 5}, "5.0 Hz is below 12 Hz"),
        (_huge_claim, {"image_rate_hz": 24}, "0.png: claims"),
        (_pictures_cut_short, {"image_rate_hz": 24}, "0.jpg: the picture is cut short or damaged"),
        (_pictures_of_two_sizes, {"image_rate_hz": 24}, "9.png is 20 x 20, the first is 64 x 48"),
    ],
)
def test_bad_source(workspace: Path, make: Callable[[Path], None], changes: dict[str, Any], words: str) -> None:
    (workspace / "input").mkdir()
    make(workspace / "input")
    message = fail_in_one_line(workspace, **changes)
    assert words in message
    assert "input" in message


def test_five_hertz_is_accepted_where_the_bound_is_lowered(workspace: Path) -> None:
    (workspace / "input").mkdir()
    _five_hertz(workspace / "input")
    ingest.run(params.parse({"ingest": {"sources": ["input"], "workers": 1, "min_rate_hz": 5}}), workspace)
    assert open_clips(workspace / "data/clips")[0].rate_hz == pytest.approx(5)


def test_a_few_bad_pictures_leave_gaps_and_not_wrong_times(workspace: Path) -> None:
    folder = workspace / "input"
    folder.mkdir()
    _pictures(folder)
    (folder / "1.png").write_bytes(b"")
    ingest.run(params.parse({"ingest": {"sources": ["input"], "workers": 1, "image_rate_hz": 20}}), workspace)
    (clip,) = open_clips(workspace / "data/clips")
    assert clip.note == "1 of 3 pictures left out: 1.png: not a picture that can be read"
    with ClipReader(clip.path) as reader:
        assert reader.info.timestamps_us == (0, 100_000)


def test_every_codec_at_hand_either_decodes_or_says_why(workspace: Path, shared_data: Path) -> None:
    """10-bit, full-range and AV1 among them; whether AV1 decodes depends on how FFmpeg was built."""
    document = {"ingest": {"sources": [str(shared_data / "codecs")], "workers": 1, "max_seconds": 0.5, "max_side": 64}}
    ingest.run(params.parse(document), workspace)
    sources = {Path(clip.source).name for clip in open_clips(workspace / "data/clips")}
    assert {"h264_10bits.mp4", "h265_10bits.mp4", "bt709_full_range.mp4", "nasa_13013.mp4"} <= sources
    assert "h265_video.mp4" not in sources, "10 Hz"


def test_the_command_does_the_good_files_and_says_what_it_set_aside(workspace: Path) -> None:
    (workspace / "input").mkdir()
    write_video(workspace / "input" / "good.mp4", moving_square(5))
    (workspace / "input" / "bad.mp4").write_bytes(b"")
    write_params(workspace, {"ingest": {"sources": ["input"]}})
    done = command(workspace)
    assert done.returncode == 0, done.stderr
    assert "1 set aside: input/bad.mp4: is empty (0 bytes)" in done.stdout
    assert len(open_clips(workspace / "data/clips")) == 1
    assert sorted(path.suffix for path in (workspace / "data/clips").iterdir()) == [".jsonl", ".parquet", ".zip"]


def test_names_of_any_bytes_spoil_no_line_and_no_other_file(workspace: Path) -> None:
    folder = workspace / "input"
    folder.mkdir()
    write_video(folder / "good.mp4", moving_square(5))
    for index, name in enumerate([b"new\nline.mp4", b"; rm -rf ~.mp4", b"\xff.mp4"]):
        write_video(folder / os.fsdecode(name), moving_square(6 + index))
    (folder / "bad\x1b\n.mp4").write_bytes(b"")
    write_params(workspace, {"ingest": {"sources": ["input"], "workers": 1}})
    done = command(workspace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "input/bad\\x1b\\n.mp4: is empty" in done.stdout
    sources = {clip.source for clip in open_clips(workspace / "data/clips")}
    assert sources == {"input/good.mp4", "input/new\\nline.mp4", "input/; rm -rf ~.mp4", "input/\\udcff.mp4"}


@pytest.mark.parametrize(
    ("document", "code", "expected"),
    [
        (
            {"ingest": {"sources": ["none"]}},
            1,
            "mosis: ingest: none: not found: check the path or URL (ingest.sources)",
        ),
        (
            {"ingest": {"sorces": ["x"]}},
            2,
            "mosis: ingest: params.yaml: unknown key ingest.sorces: did you mean sources?",
        ),
        ({"train": 5}, 2, "mosis: ingest: params.yaml: train: holds keys (method, "),
        ({"ingest": {"min_rate_hz": -1}}, 2, "mosis: ingest: params.yaml: ingest.min_rate_hz: "),
    ],
)
def test_the_command_fails_in_one_line(workspace: Path, document: dict[str, Any], code: int, expected: str) -> None:
    write_params(workspace, document)
    done = command(workspace)
    assert done.returncode == code
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (workspace / "data").exists()


def test_no_params(workspace: Path) -> None:
    (workspace / "params.yaml").unlink()
    done = command(workspace)
    assert done.returncode == 2
    assert done.stderr.startswith("mosis: ingest: params.yaml not found: run inside a workspace")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_takes_no_more_ends_the_stage(workspace: Path, workers: int) -> None:
    """A real limit of the kernel on the size of a file stands for a full disk: writes fail at the same places."""
    (workspace / "input").mkdir()
    for name in ("a", "b"):
        write_video(workspace / "input" / f"{name}.mp4", moving_square(40 + ord(name)))
    write_params(workspace, {"ingest": {"sources": ["input"], "workers": workers, "max_rejected_share": 1.0}})
    limit = 20_000
    done = command(workspace, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1
    assert "mosis: ingest: cannot write " in done.stderr
    assert "use another disk" in done.stderr
    assert os.listdir(workspace / "data") == []


def test_an_output_that_cannot_be_written(workspace: Path) -> None:
    (workspace / "data").write_text("a file where the folder must be")
    done = command(workspace)
    assert done.returncode == 1
    assert done.stderr.startswith("mosis: ingest: cannot write ")
    assert "remove or rename it" in done.stderr
    assert (workspace / "data").read_text() == "a file where the folder must be"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(workspace: Path) -> None:
    (workspace / "data").mkdir(mode=0o555)
    done = command(workspace)
    assert done.returncode == 1
    assert "no permission to write" in done.stderr
