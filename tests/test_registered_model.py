"""The registered model loads without this repository, predicts as the pipeline does, and keeps to its own code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from registered_toy import THRESHOLD, registered, write_outputs

import models
from tasks import params as parameters
from tasks import pyfunc_model, registry, tracking
from tasks.errors import DataError, StorageError
from tasks.predict import Predictor

ROOT = Path(__file__).parents[1]


def write_metrics(workspace: Path) -> None:
    path = workspace / "outputs" / "evaluate" / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"mask": {"AP": 0.123456, "AP50": 0.5}, "box": {"AP": None, "AP50": 0.25}}))


def some_images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 90, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A workspace with one registered version; its store takes seconds to set up, so the tests share it."""
    folder = write_outputs(tmp_path_factory.mktemp("workspace"))
    write_metrics(folder)
    with registered(folder):
        yield folder


@pytest.fixture
def uri(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """For mlflow's own functions."""
    found = tracking.tracking_uri(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found)
    import mlflow

    mlflow.set_tracking_uri(found)
    return found


FRESH_PROCESS = """
import importlib.util, json, os, sys
sys.path = [path for path in sys.path if os.path.realpath(path) != ROOT]
for name in ("models", "tasks"):
    assert importlib.util.find_spec(name) is None, f"{name} is still importable"
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/mosis@champion")
images = numpy.random.default_rng(5).integers(0, 256, (2, 90, 70, 3), dtype=numpy.uint8)
print(json.dumps(model.predict(images)))
ours = [name for name in sys.modules if name.split(".")[0] in ("models", "tasks", "flows")]
assert not ours, ours
"""


def test_loads_from_an_empty_folder_without_the_repository(workspace: Path, uri: str, tmp_path: Path) -> None:
    script = f"ROOT = {os.path.realpath(ROOT)!r}\n{FRESH_PROCESS}"
    environment = {"MLFLOW_TRACKING_URI": uri, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    train = workspace / "outputs" / "train"
    predictor = Predictor.load(train / "weights.safetensors", train / "params.resolved.yaml", device="cpu")
    expected = predictor(list(some_images()), score_threshold=THRESHOLD)
    assert len(found) == 2
    assert min(len(instances) for instances in expected) > 0  # else there is nothing to compare
    for plain, instances in zip(found, expected, strict=True):
        np.testing.assert_allclose(plain["boxes"], instances.boxes.numpy(), atol=1e-3)
        np.testing.assert_allclose(plain["scores"], instances.scores.numpy(), atol=1e-5)
        assert plain["masks"][0]["size"] == [90, 70]
        masks = pycocotools.mask.decode(plain["masks"]).transpose(2, 0, 1)
        assert (masks == instances.masks.numpy()).mean() > 0.999


def test_tags_and_signature(workspace: Path, uri: str) -> None:
    import mlflow

    version = mlflow.MlflowClient().get_model_version_by_alias("mosis", "champion")
    assert version.tags["weights_sha256"] == registry.sha256_file(workspace / "outputs/train/weights.safetensors")
    assert {name: version.tags[name] for name in ("mask_AP", "mask_AP50", "box_AP50")} == {
        "mask_AP": "0.1235",
        "mask_AP50": "0.5000",
        "box_AP50": "0.2500",
    }
    assert "box_AP" not in version.tags
    info = mlflow.models.get_model_info("models:/mosis@champion")
    assert info.signature.inputs.to_dict() == [
        {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": (-1, -1, -1, 3)}}
    ]


def test_nothing_is_pickled_and_no_requirement_is_inferred(workspace: Path) -> None:
    (folder,) = (workspace / "mlruns" / "artifacts" / "models").iterdir()
    files = [path.relative_to(folder / "artifacts").as_posix() for path in folder.rglob("*") if path.is_file()]
    assert "artifacts/weights.safetensors" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".md"))]
    assert not [name for name in files if name.startswith("artifacts/models/") and not name.endswith(".py")]
    listed = (folder / "artifacts" / "requirements.txt").read_text().split()
    assert sorted(line.partition("==")[0] for line in listed) == sorted(registry._PACKAGES)
    assert all("==" in line and "+" not in line for line in listed)


def test_wrong_input_is_refused_in_words(workspace: Path, uri: str) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/mosis@champion")
    with pytest.raises(mlflow.MlflowException, match="dtype of input float64 does not match expected dtype uint8"):
        model.predict(some_images() / 255)
    with pytest.raises(mlflow.MlflowException, match=r"Shape of input \(2, 90, 70\) does not match"):
        model.predict(some_images()[..., 0])
    inner = model.unwrap_python_model()
    assert len(inner.predict(None, some_images()[0])) == 1  # a single image, where no signature stands before it
    assert inner.predict(None, some_images(0)) == []
    with pytest.raises(ValueError, match="images must be uint8 RGB in 0 to 255, not float32"):
        inner.predict(None, some_images().astype(np.float32))
    with pytest.raises(ValueError, match=r"images must be .* not \(2, 90, 70, 4\)"):
        inner.predict(None, np.zeros((2, 90, 70, 4), np.uint8))


def test_the_threshold_is_a_parameter(workspace: Path, uri: str) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/mosis@champion")
    everything = model.predict(some_images(1))[0]
    cut = float(np.median(everything["scores"]))
    kept = model.predict(some_images(1), params={"score_threshold": cut})[0]["scores"]
    assert 0 < len(kept) < len(everything["scores"])
    assert min(kept) >= cut


def test_large_images_go_through_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pyfunc_model.MosisModel()
    batches: list[int] = []

    def record(images: np.ndarray, threshold: float | None) -> list[dict[str, Any]]:
        batches.append(len(images))
        return [{} for _ in images]

    monkeypatch.setattr(model, "_predict_batch", record)
    for shape, expected in (((3, 3000, 5000, 3), [1, 1, 1]), ((20, 8, 8, 3), [16, 4]), ((0, 8, 8, 3), [])):
        images = np.broadcast_to(np.uint8(0), shape)
        assert len(model.predict(None, images)) == shape[0]
        assert batches == expected
        batches.clear()


def test_registering_the_same_again_makes_no_version(workspace: Path, uri: str) -> None:
    import mlflow

    assert tracking.register(workspace).created is False
    assert tracking.register(workspace, alias="challenger").version in (1, "1")
    assert mlflow.MlflowClient().get_model_version_by_alias("mosis", "challenger").version in (1, "1")


def test_two_versions_with_different_code_run_side_by_side(
    workspace: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MLflow's code_paths the second would silently run the first one's code."""
    import mlflow

    sources = Path(shutil.copytree(registry.SOURCES, tmp_path / "models"))
    images = sources / "common" / "images.py"
    changed = images.read_text().replace(".float() / 255", ".float() * 0")
    assert changed != images.read_text()
    images.write_text(changed)
    monkeypatch.setattr(registry, "SOURCES", sources)
    second = tracking.register(workspace, alias="challenger")
    assert second.created
    champion, challenger = (mlflow.pyfunc.load_model(f"models:/mosis@{name}") for name in ("champion", "challenger"))
    first_again = champion.predict(some_images())
    assert challenger.predict(some_images()) == challenger.predict(some_images()[::-1].copy())  # it sees black
    assert first_again[0] != first_again[1]
    assert champion.predict(some_images()) == first_again
    assert first_again != challenger.predict(some_images())


def test_every_method_has_the_settings_class_that_the_loader_looks_for() -> None:
    for method in models.METHODS:
        name = "".join(part.capitalize() for part in method.split("_")) + "Config"
        assert type(getattr(parameters.TrainParams(), method)).__name__ == name


def test_nothing_trained_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"weights\.safetensors not found: run the train stage first"):
        tracking.register(tmp_path)


def test_an_unreachable_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hunter2@127.0.0.1:9")
    write_outputs(tmp_path)
    with pytest.raises(StorageError, match=r"MLflow at http://127\.0\.0\.1:9") as caught:
        tracking.register(tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tracking_off_registers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    write_outputs(tmp_path)
    assert not tracking.register(tmp_path).created
    assert not (tmp_path / "mlruns").exists()
