"""Versions whose quality is set by hand: a network that finds what differs from the background, as well as its weights
say; and a workspace whose train stage takes those weights from a file, everything else being real.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from tasks import intake, model_store, params, registry, tracking
from tasks.files import sha256_file
from tasks.inbox import list_arrivals
from tasks.intake import Request
from tasks.promotion import canary
from tasks.sources.params import SyntheticParams
from tasks.workspace import init
from tests.conftest import write_video
from tests.service_toy import SETTINGS

CANARY = SyntheticParams(
    videos=6, frames=2, height=64, width=64, seed=9, objects=(1, 1), texture_contrast=0.0, dense_flow=False
)
"""Flat objects before a flat background."""

_NETWORK = '''

def _build_toy(config, size):
    import os
    import torch
    from torch import nn
    from torch.nn import functional
    from .common.instances import Instances
    from .interface import Segmenter

    class Toy(Segmenter):
        """shift: pixels by which its masks lie too far to the right. cover: above 0 it sees one object everywhere.

        score: below 0 its process dies of it."""

        def __init__(self):
            super().__init__()
            self.shift, self.cover, self.score = (nn.Parameter(torch.zeros(1)) for _ in range(3))

        def predict(self, images, *, score_threshold=None, output_size=None):
            if self.score.item() < 0:
                os._exit(9)
            ground = images.flatten(2).median(2).values[..., None, None]
            masks = ((images - ground).abs().sum(1) > 0.3).float()
            masks = masks.roll(int(self.shift), -1) if self.cover.item() <= 0 else torch.ones_like(masks)
            if output_size is not None:
                masks = functional.interpolate(masks[:, None], size=output_size)[:, 0]
            found = []
            for mask in masks > 0.5:
                keep = bool(mask.any()) and float(self.score) >= (score_threshold or 0)
                found.append(Instances.from_masks(mask[None][: int(keep)], self.score.detach()[: int(keep)]))
            return found

    return Toy()


METHODS["mosis"] = _build_toy
'''

_DVC = """\
stages:
  ingest:
    cmd: python -m tasks ingest
    params: [ingest]
    outs: [data/clips]
  pairs:
    cmd: python -m tasks pairs
    deps: [data/clips]
    params: [pairs]
    outs: [data/pairs]
  train:
    cmd: mkdir -p outputs/train && cp prepared/weights.safetensors prepared/params.resolved.yaml outputs/train
    deps: [data/pairs, prepared]
    outs: [outputs/train/weights.safetensors, outputs/train/params.resolved.yaml]
  evaluate:
    cmd: mkdir -p outputs/evaluate && echo '{}' > outputs/evaluate/metrics.json
    deps: [outputs/train/weights.safetensors]
    outs: [outputs/evaluate/metrics.json]
  export:
    cmd: mkdir -p outputs/labels && echo '{}' > outputs/labels/coco.json
    deps: [outputs/train/weights.safetensors]
    outs: [outputs/labels]
"""


def use_toy(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Register the toy network's code, and compare on a canary that it can see, from here on in this process."""
    sources = Path(shutil.copytree(registry.SOURCES, folder / "models"))
    with open(sources / "__init__.py", "a") as file:
        file.write(_NETWORK)
    patch.setattr(registry, "SOURCES", sources)
    patch.setattr(canary, "VIDEOS", CANARY)


def prepare(
    workspace: Path, *, shift: float = 0.0, cover: float = 0.0, score: float = 0.9, at: str = "prepared"
) -> None:
    """What the next training gives."""
    folder = workspace / at
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"shift": torch.tensor([shift]), "cover": torch.tensor([cover]), "score": torch.tensor([score])}
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    resolved = {"format": 1, "method": "mosis", "size": [64, 64], "params": params.to_dict(params.Params())}
    (folder / "params.resolved.yaml").write_text(yaml.safe_dump(resolved))


def register(workspace: Path, alias: str = "champion", **quality: float) -> str:
    """A version of that quality, without a training."""
    prepare(workspace, at="outputs/train", **quality)
    return tracking.register(workspace, alias=alias).version


def drop(folder: Path, name: str, number: int) -> Path:
    """A video of its own content for each number: a bright textured square that moves over a dark still ground."""
    rng = np.random.default_rng(number)
    ground = rng.integers(0, 40, (48, 64, 3), dtype=np.uint8)
    square = rng.integers(150, 255, (16, 16, 3), dtype=np.uint8)
    frames = []
    for index in range(6):
        frame = ground.copy()
        frame[16:32, 2 * index + 4 : 2 * index + 20] = square
        frames.append(frame)
    return write_video(folder / name, frames)


def make_library(workspace: Path, videos: int) -> None:
    """Take that many videos in, as the new-video flow does."""
    settings = params.load(workspace / "params.yaml")
    for number in range(videos):
        drop(workspace / "inbox", f"{number}.mp4", number)
    with model_store.fetch_files("models:/mosis/1", workspace) as (version, folder), intake.lock(workspace):
        for arrival in list_arrivals(str(workspace / "inbox")):
            with intake.local_file(arrival, workspace) as file:
                request = Request(arrival, file, sha256_file(file), workspace, settings, version, folder)
                intake.take_in(request)


def make_workspace(folder: Path) -> Path:
    """With a champion of middling quality that was trained on one video, and a library of new ones."""
    own = drop(folder.parent, "own.mp4", 99)
    init(
        folder,
        {
            **SETTINGS,
            "export.score_threshold": 0.4,
            "ingest.sources": [str(own)],
            "ingest.workers": 1,
            "pairs.workers": 1,
            "pairs.height": 64,
            "pairs.width": 64,
            "pairs.train_share": 1.0,
            "pairs.val_share": 0.0,
            "service.held_out_share": 0.5,
            "service.min_new_minutes": 0.01,
        },
    )
    (folder / "dvc.yaml").write_text(_DVC)
    (folder / "inbox").mkdir()
    assert register(folder, shift=3.0) == "1"
    return folder
