"""Models out of a real registry: by name, whole, under their own code, nothing in them unpickled; no secret shown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import moving_square, write_video
from registered_toy import THRESHOLD, registered, write_outputs

from tasks import model_store, registry, tracking
from tasks.errors import DataError, MosisError, ParamsError
from tasks.formats.coco import read_coco
from tasks.lineage import hide_secrets
from tasks.predict import Predictor

ROOT = Path(__file__).parents[1]
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-hunter2-s3",
    "PGPASSWORD": "planted-hunter2-pg",
    "MLFLOW_TRACKING_PASSWORD": "planted-hunter2-mlflow",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://me:planted-hunter2-db@127.0.0.1/prefect",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_outputs(tmp_path_factory.mktemp("workspace"))
    with registered(folder):
        yield folder


@pytest.fixture
def files(workspace: Path, tmp_path: Path) -> Path:
    """A copy of version 1's files, to be broken."""
    return tracking.download(tracking.resolve("models:/mosis/1", workspace), workspace, tmp_path)


def frames() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, size, dtype=np.uint8) for size in ((90, 70, 3), (40, 50, 3), (90, 70, 3))]


def test_an_alias_is_a_number_from_then_on(workspace: Path) -> None:
    by_alias = tracking.resolve("models:/mosis@champion", workspace)
    assert (by_alias.version, by_alias.alias, by_alias.uri) == ("1", "champion", "models:/mosis/1")
    assert tracking.resolve(by_alias.uri, workspace) == replace(by_alias, alias=None)


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("models:/mosis@nobody", DataError, "models:/mosis@nobody: not in the registry at sqlite:"),
        ("models:/mosis/9", DataError, "models:/mosis/9: not in the registry"),
        ("models:/other@champion", DataError, "not in the registry"),
        ("models:/mosis", ParamsError, "write models:/NAME@ALIAS or models:/NAME/NUMBER"),
        ("models:/mosis/latest", ParamsError, "write models:"),
        ("models:/../x@y", ParamsError, "write models:"),
        ("models://me:hunter2@host/mosis/1", ParamsError, "models://host/mosis/1: write models:"),
    ],
)
def test_what_names_no_version_is_one_line(workspace: Path, uri: str, error: type[MosisError], words: str) -> None:
    with pytest.raises(error) as caught:
        tracking.resolve(uri, workspace)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_there_is_no_registry_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(DataError, match="has no model registry: set MLFLOW_TRACKING_URI or go to a workspace"):
        tracking.resolve("models:/mosis@champion", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_version_predicts_as_the_pipeline_does_and_its_folder_goes(workspace: Path) -> None:
    train = workspace / "outputs" / "train"
    predictor = Predictor.load(train / "weights.safetensors", train / "params.resolved.yaml", device="cpu")
    expected = predictor(frames(), THRESHOLD)
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("mosis-model-*"))
    with model_store.fetch("models:/mosis@champion", workspace, device="cpu") as model:
        found = model.predict(frames(), THRESHOLD)
        lineage, version = dict(model.lineage), tracking.resolve("models:/mosis/1", workspace)
        during = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("mosis-model-*"))
    assert len(during - before) >= 1
    assert not [path for path in during - before if path.exists()]
    assert [len(one) for one in found] == [len(one) for one in expected]
    assert min(len(one) for one in expected) > 0
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs.boxes.numpy(), ours.boxes.numpy(), atol=1e-3)
        np.testing.assert_allclose(theirs.scores.numpy(), ours.scores.numpy(), atol=1e-5)
        assert theirs.masks.shape == ours.masks.shape
        assert type(theirs) is type(ours)
    assert lineage == {
        "name": "mosis",
        "version": "1",
        "alias": "champion",
        "method": "mosis",
        "weights_sha256": registry.sha256_file(train / "weights.safetensors"),
        "package_sha256": version.tags["package_sha256"],
    }
    assert model.label == "mosis/1"
    assert model.export.score_threshold == THRESHOLD
    assert model.provenance["thresholds"]["mask_threshold"] == 0.4
    assert model.with_score(0.7).provenance["thresholds"]["score"] == 0.7
    assert model.with_score(None) is model


def test_a_version_runs_under_the_code_that_it_was_registered_with(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Path(shutil.copytree(registry.SOURCES, tmp_path / "models"))
    images = sources / "common" / "images.py"
    images.write_text(images.read_text().replace(".float() / 255", ".float() * 0"))
    monkeypatch.setattr(registry, "SOURCES", sources)
    second = tracking.register(workspace, alias="challenger")
    assert second.created
    with (
        model_store.fetch("models:/mosis/1", workspace, device="cpu") as champion,
        model_store.fetch("models:/mosis@challenger", workspace, device="cpu") as challenger,
    ):
        first, _, third = champion.predict(frames(), 0.0)
        assert not np.allclose(first.scores[:5].numpy(), third.scores[:5].numpy())
        first, _, third = challenger.predict(frames(), 0.0)  # all is black to it
        np.testing.assert_array_equal(first.scores.numpy(), third.scores.numpy())


def test_a_local_folder_needs_no_registry(workspace: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks import model_store\n"
        f"with model_store.fetch({str(workspace / 'outputs' / 'train')!r}, Path(), device='cpu') as model:\n"
        "    print(model.label, model.lineage['method'], model.predict([], 0.5), 'mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    digest = registry.sha256_file(workspace / "outputs" / "train" / "weights.safetensors")
    assert done.stdout.split() == [digest[:12], "mosis", "[]", "False"]
    with pytest.raises(DataError, match=r"weights\.safetensors not found: --model is models:/NAME@ALIAS"):
        model_store.load_folder(tmp_path)


class Bomb:
    """Says so when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_a_version_with_a_pickled_part_is_refused_and_not_unpickled(workspace: Path, tmp_path: Path) -> None:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    class Pickled(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input

    model = Pickled()
    model.bomb = Bomb(tmp_path / "exploded")
    images = ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]))
    client = tracking.connect(workspace)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking.tracking_uri(workspace))
    try:
        with mlflow.start_run():
            mlflow.pyfunc.log_model(
                name="p", python_model=model, registered_model_name="pickled", pip_requirements=[], signature=images
            )
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
    assert client.get_model_version("pickled", "1")
    with (
        pytest.raises(DataError, match=r"models:/pickled/1: holds 'python_model\.pkl', which would be unpickled"),
        model_store.fetch("models:/pickled/1", workspace),
    ):
        pass
    assert not (tmp_path / "exploded").exists()


def break_weights(folder: Path) -> None:
    path = folder / "artifacts" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def break_code(folder: Path) -> None:
    with open(folder / "artifacts" / "models" / "__init__.py", "a") as file:
        file.write("\nprint('planted')\n")


def pickle_by_name(folder: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("    streamable:", "    python_model: innocent.txt\n    streamable:"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_weights, "its files are not those of its tag weights_sha256"),
        (break_code, "its files are not those of its tag package_sha256"),
        (
            lambda folder: (folder / "artifacts" / "extra.pt").touch(),
            "holds 'artifacts/extra.pt', which would be unpick",
        ),
        (pickle_by_name, "was not registered by `mosis run`"),
        (lambda folder: (folder / "MLmodel").write_text("flavors: [keras]"), "was not registered by `mosis run`"),
        (lambda folder: (folder / "MLmodel").write_text("}{"), "has no readable MLmodel"),
        (lambda folder: (folder / "MLmodel").unlink(), "has no readable MLmodel"),
        (lambda folder: (folder / "MLmodel").write_bytes(b"a" * 5 * 2**20), "larger than"),
        (lambda folder: (folder / "artifacts" / "params.resolved.yaml").unlink(), "lacks params.resolved.yaml"),
    ],
)
def test_what_is_not_as_it_was_registered_is_refused(workspace: Path, files: Path, damage: Any, words: str) -> None:
    version = tracking.resolve("models:/mosis/1", workspace)
    model_store.check_version(version, files)
    damage(files)
    with pytest.raises(DataError) as caught:
        model_store.check_version(version, files)
    assert str(caught.value).startswith("models:/mosis/1: ")
    assert words in str(caught.value)


def test_a_version_without_digests_is_refused(workspace: Path, files: Path) -> None:
    version = tracking.resolve("models:/mosis/1", workspace)
    with pytest.raises(DataError, match="tag weights_sha256"):
        model_store.check_version(replace(version, tags={}), files)


def test_parts_that_do_not_fit_are_one_line(workspace: Path, files: Path) -> None:
    version = tracking.resolve("models:/mosis/1", workspace)
    params = files / "artifacts" / "params.resolved.yaml"
    text = params.read_text()
    for broken in (text.replace("format: 1", "format: 99"), text.replace("method: mosis", "method: gone"), "[]"):
        assert broken != text
        params.write_text(broken)
        with pytest.raises(DataError, match=r"models:/mosis/1: cannot be loaded \(.*\): use another version"):
            model_store.load_version(version, files, "cpu")
    params.write_text(text)
    (files / "artifacts" / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be loaded"):
        model_store.load_version(version, files, "cpu")


def test_code_that_changes_while_it_is_registered_makes_no_version(tmp_path: Path) -> None:
    write_outputs(tmp_path)
    package = registry.describe_package(tmp_path)
    registry.copy_sources(package, tmp_path / "a")
    sources = Path(shutil.copytree(registry.SOURCES, tmp_path / "models"))
    (sources / "new.py").touch()
    with pytest.raises(DataError, match="changed while it was registered"):
        registry.copy_sources(replace(package, sources=sources), tmp_path / "b")


def mosis(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = "import sys; from flows.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, *arguments]
    own = {**os.environ, **PLANTED, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=250)


def test_the_command_in_a_workspace_shows_no_secret(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_video(tmp_path / "a.mp4", moving_square(3))
    cv2.imwrite(str(tmp_path / "b.png"), moving_square(1)[0])
    done = mosis("label", str(tmp_path / "a.mp4"), str(tmp_path / "b.png"), "--out", str(out), folder=workspace)
    assert done.returncode == 0, done.stderr
    assert "4 images" in done.stdout
    assert "by mosis/1" in done.stdout
    assert len(read_coco(out / "coco.json").images) == 4
    written = [
        path.read_bytes() for folder in (out, workspace / "mlruns") for path in folder.rglob("*") if path.is_file()
    ]
    assert not [data for data in (*written, (done.stdout + done.stderr).encode()) if b"hunter2" in data]


def test_a_database_that_cannot_be_reached_shows_no_password(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "a.mp4").touch()
    uri = "postgresql+psycopg2://mosis:hun/ter2@127.0.0.1:9/mlflow?password=hunter2"
    done = mosis("label", "a.mp4", "--out", "out", folder=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert "ter2" not in done.stdout + done.stderr
    assert done.stderr.startswith("mosis: MLflow at postgresql+psycopg2://127.0.0.1:9/mlflow: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_passwords_with_slashes_and_at_signs_are_hidden() -> None:
    for url, shown in (
        ("postgresql://mosis:se/cr@et@host/db", "postgresql://host/db"),
        ("http://me:p@ss@host:80/x", "http://host:80/x"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("see http://a/b and http://u:p@c/d", "see http://a/b and http://c/d"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
    ):
        assert hide_secrets(url) == shown
