"""The ingest stage as a whole, and `python -m tasks` around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import moving_square, tiny_synthetic, write_params, write_video

from tasks import ingest, params
from tasks.__main__ import lock_workspace, main
from tasks.clips import ClipReader, open_clips
from tasks.errors import BusyError, NothingLeftError, ParamsError, SourceError


def run(workspace: Path, *sources: Path | str, **changes: Any) -> None:
    document = {"ingest": {"sources": [str(source) for source in sources], "workers": 1, **changes}}
    ingest.run(params.parse(document), workspace)


def rejected(workspace: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (workspace / "data/clips/rejected.jsonl").read_text().splitlines()]


def test_synthetic_video_is_ingested(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest.run(params.load(), workspace)
    clips = open_clips(workspace / "data/clips")
    assert [clip.frames for clip in clips] == [6, 6]
    assert all(clip.truth for clip in clips)
    assert rejected(workspace) == []
    assert "2 clips, 12 frames, 0.5 s of video" in capsys.readouterr().out
    with ClipReader(clips[0].path) as clip:
        assert clip.truth(0) is not None


def test_ingesting_twice_changes_nothing_on_one_worker_or_two(workspace: Path) -> None:
    for name in ("a", "b", "c"):
        write_video(workspace / f"{name}.mp4", moving_square(4 + ord(name)))
    contents = []
    for workers in (1, 2):
        run(workspace, workspace, workers=workers)
        folder = workspace / "data/clips"
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
        assert len(contents[-1]) == 3 + 2
        subprocess.run(["rm", "-r", str(workspace / "data")], check=True)
    assert contents[0] == contents[1]


def test_bad_files_are_set_aside_and_the_good_ones_done(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(workspace / "good.mp4", moving_square(5))
    (workspace / "bad.mp4").write_text("no video")
    run(workspace, workspace)
    assert len(open_clips(workspace / "data/clips")) == 1
    (row,) = rejected(workspace)
    assert row["source"].endswith("bad.mp4")
    assert row["reason"].startswith("is not a video that can be read")
    assert "1 set aside" in capsys.readouterr().out


def test_too_many_bad_files_fail_and_leave_the_last_good_state(workspace: Path) -> None:
    write_video(workspace / "good.mp4", moving_square(5))
    run(workspace, workspace / "good.mp4")
    before = sorted(os.listdir(workspace / "data/clips"))
    for name in ("b.mp4", "c.mp4"):
        (workspace / name).write_text("no video")
    with pytest.raises(NothingLeftError, match=r"2 of 3 sources \(67%\).*max_rejected_share \(50%\)"):
        run(workspace, workspace)
    assert sorted(os.listdir(workspace / "data/clips")) == before
    assert os.listdir(workspace / "data") == ["clips"]
    run(workspace, workspace, max_rejected_share=0.7)
    assert len(rejected(workspace)) == 2


def test_all_bad_names_the_first_reasons(workspace: Path) -> None:
    for index in range(5):
        (workspace / f"{index}.mp4").write_bytes(b"")
    with pytest.raises(NothingLeftError, match=r"0\.mp4: is empty.*1\.mp4.*2\.mp4.*and 2 more"):
        run(workspace, workspace, max_rejected_share=1.0)
    assert not (workspace / "data/clips").exists()


def test_the_same_content_under_two_names_is_ingested_once(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_video(workspace / "a.mp4", moving_square(5))
    (workspace / "b.mp4").write_bytes(path.read_bytes())
    run(workspace, workspace, workspace / "a.mp4")
    (clip,) = open_clips(workspace / "data/clips")
    with ClipReader(clip.path) as reader:
        assert reader.info.source == clip.source == str(workspace / "a.mp4")
    assert rejected(workspace) == []
    assert f"1 ingested once only: {workspace / 'b.mp4'}" in capsys.readouterr().out


def test_a_source_that_does_not_exist_fails_before_any_work(workspace: Path) -> None:
    write_video(workspace / "good.mp4", moving_square(5))
    with pytest.raises(SourceError, match=r"typo\.mp4: not found"):
        run(workspace, workspace / "good.mp4", workspace / "typo.mp4")
    assert not (workspace / "data").exists()


def test_a_wanted_rate_below_the_bound_is_a_contradiction(workspace: Path) -> None:
    with pytest.raises(ParamsError, match=r"ingest\.rate_hz: 5 is below ingest\.min_rate_hz 12"):
        run(workspace, workspace, rate_hz=5)


def test_a_failure_after_the_first_clip_leaves_no_clip_of_that_source(workspace: Path) -> None:
    path = write_video(
        workspace / "cut.mp4",
        moving_square(96),
        codec="libx264",
        options={"g": "6"},
        container_options={"movflags": "faststart"},
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.45)])
    write_video(workspace / "good.mp4", moving_square(5))
    run(workspace, workspace, clip_seconds=0.25)
    assert {clip.frames for clip in open_clips(workspace / "data/clips")} == {5}
    assert len(os.listdir(workspace / "data/clips")) == 3
    (row,) = rejected(workspace)
    assert "frames can be decoded: cut short or broken" in row["reason"]


def test_a_video_cut_short_in_its_last_half_is_kept_with_a_note(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video(
        workspace / "cut.mp4",
        moving_square(96),
        codec="libx264",
        options={"g": "6"},
        container_options={"movflags": "faststart"},
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    run(workspace, path)
    (clip,) = open_clips(workspace / "data/clips")
    assert 48 < clip.frames < 96
    assert clip.note == f"{clip.frames} of 96 frames decoded: cut short or damaged"
    assert clip.note in capsys.readouterr().out


def command(workspace: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks", *arguments],
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_the_command_runs_a_stage(workspace: Path) -> None:
    done = command(workspace, "ingest")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ingest: 2 clips")
    assert len(open_clips(workspace / "data/clips")) == 2


def test_help_names_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("one of: ingest, pairs, train, evaluate, export")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ingset"], "mosis: unknown stage 'ingset': did you mean ingest?"),
        (["xyz"], "mosis: unknown stage 'xyz': known are ingest, pairs, train, evaluate, export"),
        ([], "mosis: name one stage: python -m tasks STAGE"),
        (["ingest", "pairs"], "mosis: ingest: name one stage"),
        (["../ingest"], "mosis: unknown stage '../ingest': did you mean ingest?"),
    ],
)
def test_a_wrong_stage_is_named_with_the_right_one(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(expected)


def test_one_line_and_a_traceback_only_when_asked(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(workspace, {"ingest": {"sources": ["none.mp4"]}})
    assert main(["ingest"]) == 1
    assert capsys.readouterr().err == ("mosis: ingest: none.mp4: not found: check the path or URL (ingest.sources)\n")
    monkeypatch.setenv("MOSIS_TRACEBACK", "1")
    assert main(["ingest"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_two_stages_never_write_in_one_workspace(workspace: Path) -> None:
    with lock_workspace(workspace, "train"):
        done = command(workspace, "ingest")
        assert done.returncode == 1
        assert f"stage train of process {os.getpid()} works in" in done.stderr
        assert not (workspace / "data").exists()
    with lock_workspace(workspace, "train"):
        pass


def test_the_lock_of_a_killed_stage_is_free(workspace: Path) -> None:
    program = (
        "import time; from pathlib import Path; from tasks.__main__ import lock_workspace\n"
        "with lock_workspace(Path.cwd(), 'train'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=workspace, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BusyError, match=str(process.pid)), lock_workspace(workspace, "ingest"):
            pass
        process.send_signal(signal.SIGKILL)
    with lock_workspace(workspace, "ingest"):
        pass


def test_ctrl_c_ends_all_processes_in_one_line(workspace: Path) -> None:
    document = tiny_synthetic(videos=200, height=256, width=256, frames=60)
    document["ingest"]["workers"] = 2
    write_params(workspace, document)
    arguments = [sys.executable, "-m", "tasks", "ingest"]
    with subprocess.Popen(
        arguments, cwd=workspace, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        while not list((workspace / "data").glob(".tmp-*/.job-*")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read() == "mosis: ingest: interrupted\n"
    assert process.returncode == 130
    assert os.listdir(workspace / "data") == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process that its parent has died")
def test_a_killed_stage_leaves_the_last_state_and_the_next_run_goes_on(workspace: Path) -> None:
    ingest.run(params.load(), workspace)
    before = {path.name: path.read_bytes() for path in (workspace / "data/clips").iterdir()}
    write_params(workspace, tiny_synthetic(videos=200, height=256, width=256, frames=60))
    with subprocess.Popen([sys.executable, "-m", "tasks", "ingest"], cwd=workspace) as process:
        while not list((workspace / "data").glob(".tmp-*/.job-*")):
            assert process.poll() is None
        process.kill()
    assert {path.name: path.read_bytes() for path in (workspace / "data/clips").iterdir()} == before
    assert len(os.listdir(workspace / "data")) == 2
    write_params(workspace, tiny_synthetic())
    ingest.run(params.load(), workspace)
    assert {path.name: path.read_bytes() for path in (workspace / "data/clips").iterdir()} == before
    assert os.listdir(workspace / "data") == ["clips"]
