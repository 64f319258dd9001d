"""A workspace with an inbox, a champion of untrained weights, and tiny videos to drop."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks import registry, tracking, workspace
from tests.clip_toy import write_weights
from tests.conftest import write_video

SETTINGS = {"service.settle_seconds": 0.2, "export.score_threshold": 0.001, "train.device": "cpu"}
NAMES = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "MOSIS_TRACKING")


def make_home(folder: Path) -> Iterator[Path]:
    """A home of its own, so that DVC's default remote is empty and no one's settings count; no server is named."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        for name in NAMES:
            patch.delenv(name, raising=False)
        yield folder


def make_workspace(folder: Path, *, champion: bool) -> Path:
    workspace.init(folder, SETTINGS)
    (folder / "inbox").mkdir()
    if champion:
        register_champion(folder)
    return folder


def register_champion(folder: Path) -> None:
    """Untrained weights, in the registry that MLFLOW_TRACKING_URI names, else in the workspace's own."""
    write_weights(folder)
    with pytest.MonkeyPatch.context() as patch:
        # A copy, so that an edit of the code while this runs makes no mixture.
        copy = shutil.copytree(registry.SOURCES, folder.parent / "code" / "models")
        patch.setattr(registry, "SOURCES", Path(copy))
        tracking.register(folder)


def copy_workspace(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True)
    return target


def drop(folder: Path, name: str, number: int = 0, frames: int = 6) -> Path:
    """A video of its own content for each number: a bright square that moves over noise."""
    rng = np.random.default_rng(number)
    ground = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8)
    pictures = []
    for index in range(frames):
        frame = ground.copy()
        frame[16:32, 2 * index + 4 : 2 * index + 20] += 150
        pictures.append(frame)
    plain = write_video(folder / "plain.mp4", pictures)
    return plain.rename(folder / name)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout
