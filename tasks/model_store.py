"""A trained model from where it lies, the registry or a local folder, ready to label: nothing in it is unpickled."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import torch
import yaml

from models.common.instances import Instances
from tasks import params as parameters
from tasks import registry, tracking
from tasks.clip_labels import thresholds
from tasks.errors import DataError
from tasks.files import sha256_file, storage_errors
from tasks.params import ExportParams
from tasks.precision import choose_device
from tasks.predict import Predictor, by_size, read_resolved
from tasks.tracking import ModelVersion

if TYPE_CHECKING:
    from tasks.pyfunc_model import Snapshot

Predict = Callable[[Sequence[np.ndarray], float | None], list[Instances]]

_LOADER_MODULE = "mlflow.pyfunc.loaders.code_model"
_MAX_YAML_BYTES = 4 * 2**20
_PICKLES = (".pkl", ".pickle", ".cloudpickle", ".joblib", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz")
"""Of these formats some or all are unpickled by whoever opens them."""
_UNFIT = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, SyntaxError, RuntimeError,
    safetensors.SafetensorError,
)  # fmt: skip
"""Raised where weights, parameters and code do not fit together."""


@dataclass(frozen=True)
class LoadedModel:
    """predict: frames (H, W, 3) uint8 RGB of any sizes and a score threshold -> Instances of each, on the CPU.

    label: what annotations call it, NAME/NUMBER or the start of the weights' digest. lineage: which model that is, for
    records. export: the settings that it was trained with. method: those of its method, plain.
    """

    predict: Predict
    label: str
    lineage: Mapping[str, Any]
    export: ExportParams
    method: Mapping[str, Any]

    def with_score(self, score: float | None) -> LoadedModel:
        """The same with another score threshold; None changes nothing."""
        if score is None:
            return self
        return dataclasses.replace(self, export=dataclasses.replace(self.export, score_threshold=score))

    @property
    def provenance(self) -> dict[str, Any]:
        """What every annotation carries."""
        return {"model_version": self.label, "thresholds": thresholds(self.export, self.method)}


@contextlib.contextmanager
def fetch(model: str, workspace: Path, *, device: str = "auto") -> Iterator[LoadedModel]:
    """Load models:/NAME@ALIAS, models:/NAME/NUMBER or a folder with weights.safetensors and params.resolved.yaml.

    A version runs under the code that it was registered with, from a temporary folder that lasts as long as the
    context; a folder runs under this code. Raises ParamsError, DataError and StorageError as `check_version` and
    `tracking.resolve` do.
    """
    if not model.startswith("models:"):
        yield load_folder(Path(model), device)
        return
    with fetch_files(model, workspace) as (version, folder):
        yield load_version(version, folder, device)


@contextlib.contextmanager
def fetch_files(model: str, workspace: Path, *, place: Path | None = None) -> Iterator[tuple[ModelVersion, Path]]:
    """The version that `model` means now and a temporary folder with its files, which have been checked.

    place: where that folder is made, for a caller who clears up there what a kill has left.
    """
    version = tracking.resolve(model, workspace)
    with (
        storage_errors(place or tempfile.gettempdir()),
        tempfile.TemporaryDirectory(prefix="mosis-model-", dir=place) as temporary,
    ):
        folder = tracking.download(version, workspace, Path(temporary))
        check_version(version, folder)
        yield version, folder


def check_version(version: ModelVersion, folder: Path) -> None:
    """Raises DataError unless the files are a version as `mosis run` registers it, whole, and hold no pickle."""
    where = version.uri
    flavours = _read_yaml(folder / "MLmodel", where).get("flavors")
    flavour = flavours.get("python_function") if isinstance(flavours, dict) else None
    pickles = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.suffix in _PICKLES]
    if pickles:
        raise DataError(
            f"{where}: holds {pickles[0]!a}, which would be unpickled: only `mosis run` makes versions to load"
        )
    if not isinstance(flavour, dict) or flavour.get("loader_module") != _LOADER_MODULE or "python_model" in flavour:
        raise DataError(f"{where}: was not registered by `mosis run`, and loading it may unpickle: refused")
    parts = _parts(folder)
    missing = [path.name for path in parts if not path.exists()]
    if missing:
        raise DataError(f"{where}: lacks {missing[0]}: register the model again (`mosis run`)")
    for tag, found in (("weights_sha256", sha256_file(parts[0])), ("package_sha256", registry.digest_package(*parts))):
        if version.tags.get(tag) != found:
            raise DataError(f"{where}: its files are not those of its tag {tag}: damaged or changed, register it again")


def load_version(version: ModelVersion, folder: Path, device: str = "auto") -> LoadedModel:
    """The model in `folder`, which check_version has seen. Raises DataError where its parts do not fit together."""
    from tasks.pyfunc_model import Snapshot  # imports mlflow, which takes seconds

    weights, params, sources, _ = _parts(folder)
    choose_device(device)
    try:
        network = Snapshot(weights, params, sources, device)
        train = network.document["params"]["train"]
        method = train[train["method"]]
        export = _known_settings(network.document["params"].get("export", {}))
    except _UNFIT as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{version.uri}: cannot be loaded ({reason}): use another version") from None
    lineage = {
        "name": version.name,
        "version": version.version,
        "alias": version.alias,
        "method": train["method"],
        **{tag: version.tags[tag] for tag in ("weights_sha256", "package_sha256")},
        **{tag: version.tags[tag] for tag in ("git_revision", "dvc_md5_pairs") if tag in version.tags},
    }
    return LoadedModel(_SnapshotPredictor(network), f"{version.name}/{version.version}", lineage, export, method)


def load_folder(folder: Path, device: str = "auto") -> LoadedModel:
    """The model of a folder as outputs/train, under this code. Raises DataError where it is none."""
    weights, resolved = folder / "weights.safetensors", folder / "params.resolved.yaml"
    if not weights.is_file():
        raise DataError(
            f"{weights} not found: --model is models:/NAME@ALIAS, models:/NAME/NUMBER or a folder that has it"
        )
    predictor = Predictor.load(weights, resolved, device=device)
    params, _ = read_resolved(resolved)
    name = params.train.method
    digest = sha256_file(weights)
    lineage = {"method": name, "weights_sha256": digest, "params_sha256": sha256_file(resolved)}
    method = dataclasses.asdict(getattr(params.train, name))
    return LoadedModel(predictor, digest[:12], lineage, params.export, method)


class _SnapshotPredictor:
    """A snapshot behind the interface of `tasks.predict.Predictor`, with this code's Instances."""

    def __init__(self, network: Snapshot) -> None:
        self._network = network

    def __call__(self, frames: Sequence[np.ndarray], score_threshold: float | None = None) -> list[Instances]:
        def run(group: list[np.ndarray]) -> list[Instances]:
            return [_to_ours(instances) for instances in self._network(np.stack(group), score_threshold)]

        return by_size(frames, run)


def _to_ours(theirs: Any) -> Instances:
    return Instances(theirs.boxes.cpu().float(), theirs.scores.cpu().float(), theirs.masks.cpu().to(torch.bool))


def _parts(folder: Path) -> tuple[Path, Path, Path, Path]:
    """weights, params, sources, loader: as `tracking.register` has MLflow lay them out."""
    artifacts = folder / "artifacts"
    return (
        artifacts / "weights.safetensors", artifacts / "params.resolved.yaml", artifacts / "models",
        folder / registry.LOADER.name,
    )  # fmt: skip


def _known_settings(export: Mapping[str, Any]) -> ExportParams:
    """Those of today's export settings that the version has; it may be older or newer than this code."""
    known = {field.name for field in dataclasses.fields(ExportParams)}
    return parameters.parse({"export": {name: value for name, value in export.items() if name in known}}).export


def _read_yaml(path: Path, where: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise DataError(f"{where}: {path.name} is larger than {_MAX_YAML_BYTES} bytes: not a file of this kind")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        document = None
    if not isinstance(document, dict):
        raise DataError(f"{where}: has no readable {path.name}: register the model again (`mosis run`)")
    return document
