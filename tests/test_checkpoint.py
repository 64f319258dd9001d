"""Resume is exact also after SIGKILL; stale and broken checkpoints are not resumed, and that is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_toy
from training_toy import train_in

from tasks.errors import StorageError
from tasks.training.checkpoint import Checkpoints, State, differences, digest_sources

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("one_thread")


def run_toy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, training_toy.__file__, str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_a_killed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run_toy(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = run_toy(tmp_path / "killed", "18")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "weights.safetensors").exists()
    resumed = run_toy(tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split() == ["15"]  # killed in step 18, checkpoints every 5
    first, second = (tmp_path / name / "weights.safetensors" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()


def test_weights_depend_on_the_seed(tmp_path: Path) -> None:
    """Else the comparison above would hold for a loop that learns nothing."""
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        train_in(tmp_path / name, seed=seed, iterations=6)
    a, b = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert a != b


def test_a_changed_parameter_starts_fresh_and_trains_every_iteration(tmp_path: Path, capsys: Any) -> None:
    train_in(tmp_path, iterations=10, fingerprint={"params": "a", "data": "d"})
    capsys.readouterr()
    fitted = train_in(tmp_path, iterations=10, learning_rate=0.01, fingerprint={"params": "b", "data": "d"})
    said = capsys.readouterr().out.splitlines()
    assert said == ["0", "an earlier training's checkpoint differs in params: starting fresh"]
    assert fitted.resumed_at == 0
    assert fitted.images_per_s > 0  # it did train
    (tmp_path / "fresh").mkdir()
    train_in(tmp_path / "fresh", iterations=10, learning_rate=0.01)
    assert (tmp_path / "weights.safetensors").read_bytes() == (tmp_path / "fresh/weights.safetensors").read_bytes()


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    train_in(tmp_path, iterations=10)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    assert train_in(tmp_path, iterations=10).resumed_at == 10
    assert (tmp_path / "weights.safetensors").read_bytes() == weights


def test_checkpoints_are_no_closer_in_time_than_asked_but_for_the_last(tmp_path: Path) -> None:
    train_in(tmp_path, iterations=10)
    often = [path.name for path in sorted((tmp_path / "checkpoint").iterdir())]
    assert often == ["checkpoint-00000005.pt", "checkpoint-00000010.pt"]
    train_in(tmp_path / "seldom", iterations=10, seconds=1e6)
    assert [path.name for path in (tmp_path / "seldom" / "checkpoint").iterdir()] == ["checkpoint-00000010.pt"]
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "seldom")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(tmp_path: Path, capsys: Any, damage: str) -> None:
    train_in(tmp_path, iterations=10)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    capsys.readouterr()
    newest = tmp_path / "checkpoint" / "checkpoint-00000010.pt"
    content = newest.read_bytes()
    if damage == "other":
        torch.save({"format": 1}, newest)
    else:
        newest.write_bytes(
            {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"\x80\x04." * 99}[damage]
        )
    assert train_in(tmp_path, iterations=10).resumed_at == 5
    assert "checkpoint-00000010.pt is broken: falling back" in capsys.readouterr().out
    assert (tmp_path / "weights.safetensors").read_bytes() == weights


def test_with_every_checkpoint_broken_it_starts_fresh(tmp_path: Path) -> None:
    train_in(tmp_path, iterations=10)
    for path in (tmp_path / "checkpoint").iterdir():
        path.write_bytes(b"")
    assert train_in(tmp_path, iterations=10).resumed_at == 0


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hacked",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Payload()}, tmp_path / "checkpoint-00000001.pt")
    assert Checkpoints(tmp_path, {}).load().state is None
    assert not (tmp_path / "hacked").exists()


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new", {"params": "p", "torch": torch.__version__})
    assert checkpoints.load().state is None
    for iteration in (5, 10, 100):
        checkpoints.save(State(iteration, {"w": torch.ones(2)}, {}, 1.5, ["iteration 5: x"]))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["checkpoint-00000010.pt", "checkpoint-00000100.pt"]
    state = checkpoints.load().state
    assert state is not None
    assert (state.iteration, state.seconds, state.streak) == (100, 1.5, ["iteration 5: x"])
    checkpoints.clear()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """The limit on file size stands for the disk: the write fails half-way with an error number of the same kind."""
    script = f"""
import resource, signal, torch
from pathlib import Path
from tasks.training.checkpoint import Checkpoints, State
checkpoints = Checkpoints(Path({str(tmp_path)!r}), {{}})
checkpoints.save(State(1, {{"w": torch.zeros(9)}}, {{}}, 0.0))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(State(2, {{"w": torch.zeros(10**6)}}, {{}}, 0.0))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert StorageError.__name__ in result.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]


def test_differences_name_the_parts() -> None:
    assert differences({"params": "a", "code": "c"}, {"params": "a", "code": "d", "torch": "2"}) == ["code", "torch"]
    assert differences({}, {}) == []


def test_source_digest_follows_content_and_names_but_not_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        folder = tmp_path / place / "models" / "common"
        folder.mkdir(parents=True)
        (folder / "x.py").write_text("x = 1\n")
        (folder / "README.md").write_text(place)
    a, b = (tmp_path / place / "models" for place in "ab")
    assert digest_sources([a]) == digest_sources([b])
    (b / "common" / "x.py").write_text("x = 2\n")
    assert digest_sources([a]) != digest_sources([b])
    before = digest_sources([a])
    (a / "common" / "x.py").rename(a / "x.py")
    assert digest_sources([a]) != before
