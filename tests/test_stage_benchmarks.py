"""The benchmarks of decoding and of the pairs stage run and measure what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import decode, pairs
from benchmarks.harness import Setting
from tasks import pairs as pairs_stage
from tasks.frames import FrameStore
from tasks.params import PairsParams, Params


def measure_pairs(row: str, folder: Path, *, frames: int = 6, workers: int = 1) -> dict[str, float]:
    hours = frames / 3600 / pairs.RATE_HZ
    plan = pairs.Plan(row, rounds=1, frames=frames, hours=hours, clips=3, workers=workers)
    return pairs.measure(plan, Setting(folder, "cpu", 1, 1))


def test_the_pairs_stage_beside_its_bare_loop(tmp_path: Path) -> None:
    row = measure_pairs("speed", tmp_path)
    assert row["frames"] == 6
    assert min(row["ours"], row["theirs"], row["by_clock"]) > 0


def test_the_bare_loop_writes_the_frames_of_the_stage(tmp_path: Path) -> None:
    """Else it would be compared with something else; the stage loses no pair of what is generated."""
    entries = pairs.make_clips(tmp_path / "data" / "clips", 50, (72, 128))
    params = Params(pairs=PairsParams(height=32, width=64, workers=1))
    pairs_stage.run(params, tmp_path)
    pairs.decode_and_write(entries, tmp_path / "bare.npy", (32, 64))
    stage = tmp_path / "data" / "pairs"
    assert (tmp_path / "bare.npy").read_bytes() == (stage / "frames-00000.npy").read_bytes()
    assert len(FrameStore.open(stage).pairs()) == 49


def test_memory_counts_the_processes_of_the_stage(tmp_path: Path) -> None:
    row = measure_pairs("memory 0 h", tmp_path, frames=800, workers=2)  # two clips
    assert (row["frames"], row["workers"]) == (800, 2)
    assert 30 < row["peak_mib"] <= row["peak_rss_mib"] < 1024


def test_many_clips_are_opened(tmp_path: Path) -> None:
    row = measure_pairs("manifest", tmp_path)
    assert row["clips"] == 3
    assert 0 < row["seconds"] < 60


def test_both_decoders_see_every_frame(tmp_path: Path) -> None:
    video = decode.generate(tmp_path / "a.mp4", frames=7)
    assert decode.decode_ours(str(video), 64) == decode.decode_alone(str(video), 64) == 7


def test_every_picture_is_copied_by_both(tmp_path: Path) -> None:
    plan = decode.Plan("copy", (), side=64, rounds=1, pictures=2)
    row = decode.measure(plan, Setting(tmp_path, "cpu", 1, 1))
    assert row["files"] == 2
    assert row["bytes"] > 10_000
    assert min(row["ours"], row["theirs"]) > 0
    assert not list(tmp_path.iterdir())


def test_rounds_are_compared_by_their_best() -> None:
    ours = [decode.Timed(None, 4.0, 8.0), decode.Timed(None, 5.0, 6.0)]
    theirs = [decode.Timed(None, 3.0, 3.0), decode.Timed(None, 2.0, 4.0)]
    found = decode.compare(ours, theirs, amount=12)
    assert (found["ours"], found["theirs"]) == (2.0, 4.0)
    assert (found["by_cpu"], found["by_clock"]) == pytest.approx((0.5, 0.5))
