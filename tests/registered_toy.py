"""outputs/train as the train stage leaves it, of an untrained network, and that network as a version of a registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import models
from tasks import params as parameters
from tasks import registry, tracking

THRESHOLD = 0.1
"""Low enough that untrained weights detect something; as a default of the model, not the code's own 0.4."""


def write_outputs(workspace: Path, seed: int = 0) -> Path:
    """outputs/train as the train stage leaves it, with weights drawn from `seed`."""
    folder = workspace / "outputs" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    params = parameters.parse(
        {"train": {"mosis": {"objective": "literal", "mask_threshold": 0.4}}, "export": {"score_threshold": THRESHOLD}}
    )
    torch.manual_seed(seed)
    model = models.METHODS["mosis"](params.train.mosis, (64, 64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # else all scores are nearly the same
    safetensors.torch.save_file(model.state_dict(), folder / "weights.safetensors")
    document = {"format": 1, "method": "mosis", "size": [64, 64], "params": parameters.to_dict(params)}
    (folder / "params.resolved.yaml").write_text(yaml.safe_dump(document))
    (folder / "summary.json").write_text(json.dumps({"run_id": None}))
    return workspace


@contextmanager
def registered(folder: Path) -> Iterator[Path]:
    """A workspace whose network is version 1 and champion of a registry of its own, seconds to set up."""
    with pytest.MonkeyPatch.context() as patch:
        # A copy, so that an edit of the code in the middle of the tests makes no other version.
        patch.setattr(registry, "SOURCES", Path(shutil.copytree(registry.SOURCES, folder / "code" / "models")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MOSIS_TRACKING", raising=False)
        assert tracking.register(folder) == tracking.RegisteredVersion("1", "models:/mosis@champion", created=True)
        yield folder
