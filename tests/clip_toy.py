"""Small clip archives, a predictor that finds what is orange in them, and weights of an untrained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

import models
from models.common.instances import Instances
from tasks import params as parameters
from tasks.clips import ClipEntry, ClipWriter


def find_orange(frames: Sequence[np.ndarray], score_threshold: float | None) -> list[Instances]:
    found = []
    for frame in frames:
        mask = torch.from_numpy((frame[..., 0] > 128) & (frame[..., 2] < 128))
        found.append(Instances.from_masks(mask[None], torch.tensor([0.9])))
    return [f[f.scores >= (score_threshold or 0)] for f in found]


def make_clip(folder: Path, name: str, frames: Sequence[np.ndarray]) -> ClipEntry:
    clip_id = name * 16
    with ClipWriter(folder, clip_id=clip_id, source=f"file:///videos/{name}.mp4", source_sha256=name * 64) as writer:
        for index, frame in enumerate(frames):
            writer.add(frame, 41_667 * index)
    return writer.entry


def write_weights(workspace: Path) -> None:
    params = parameters.parse({"train": {"mosis": {"mask_threshold": 0.2, "score_threshold": 0.0}}})
    torch.manual_seed(0)
    model = models.METHODS["mosis"](params.train.mosis, (64, 64))
    folder = workspace / "outputs" / "train"
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    resolved = {"format": 1, "size": [64, 64], "params": parameters.to_dict(params)}
    (folder / "params.resolved.yaml").write_text(yaml.safe_dump(resolved))
