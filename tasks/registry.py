"""What makes up one version of the registered model: files, tags and the digest that tells versions apart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from tasks.errors import DataError
from tasks.files import read_json, sha256_file, storage_errors

LOADER = Path(__file__).with_name("pyfunc_model.py")
SOURCES = Path(models.__file__).parent
_PACKAGES = ("mlflow", "numpy", "opencv-python", "pycocotools", "pyyaml", "safetensors", "torch", "torchvision")


@dataclass(frozen=True)
class Package:
    """weights, params: files of the train stage. sources: the folder `models` as it is now. digest: over all of it."""

    weights: Path
    params: Path
    sources: Path
    digest: str
    weights_sha256: str
    score_threshold: float


def describe_package(workspace: Path) -> Package:
    """What would be registered now. Raises DataError where nothing has been trained."""
    train = workspace / "outputs" / "train"
    weights, resolved = train / "weights.safetensors", train / "params.resolved.yaml"
    if not weights.is_file():
        raise DataError(f"{weights} not found: run the train stage first (`dvc repro train`)")
    from tasks.predict import read_resolved  # imports torch, which looking into the registry can do without

    params, _ = read_resolved(resolved)
    digest = digest_package(weights, resolved, SOURCES, LOADER)
    return Package(weights, resolved, SOURCES, digest, sha256_file(weights), params.export.score_threshold)


def digest_package(weights: Path, params: Path, sources: Path, loader: Path) -> str:
    """Hex SHA-256 that stands for one version: three files, and the Python files of the folder `sources` (models)."""
    from tasks.training.checkpoint import digest_sources  # imports torch

    parts = (sha256_file(weights), sha256_file(params), digest_sources([sources]), sha256_file(loader))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def copy_sources(package: Package, folder: Path) -> Path:
    """Copy the Python files of `models` to folder/models: no caches, no notes.

    Raises DataError where they are not those of the package's digest any more: nobody could load such a version.
    """
    target = folder / "models"
    with storage_errors(target):
        for path in sorted(package.sources.rglob("*.py")):
            place = target / path.relative_to(package.sources)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    if digest_package(package.weights, package.params, target, LOADER) != package.digest:
        raise DataError(f"{package.sources} or {package.weights} changed while it was registered: register again")
    return target


def requirements() -> list[str]:
    """Exact versions of what the loader and the networks import, so that MLflow has nothing to find out by itself."""
    # Without "+cu130" and the like: a local version names a build that other indexes do not have.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _PACKAGES]


def read_scores(workspace: Path) -> dict[str, str]:
    """Tags from the evaluate stage: AP where there is truth, and the label-free figures, which tasks/drift.py reads."""
    path = workspace / "outputs" / "evaluate" / "metrics.json"
    metrics: Any = read_json(path) if path.is_file() else {}
    scores: dict[str, str] = {}
    for kind in ("mask", "box"):
        found = metrics.get(kind) if isinstance(metrics, dict) else None
        for name in ("AP", "AP50"):
            value = found.get(name) if isinstance(found, dict) else None
            if isinstance(value, int | float):
                scores[f"{kind}_{name}"] = f"{value:.4f}"
    free = metrics.get("label_free") if isinstance(metrics, dict) else None
    for name, value in (free if isinstance(free, dict) else {}).items():
        if isinstance(value, int | float):
            scores[f"label_free_{name}"] = f"{value:.4f}"
    cut = metrics.get("score_cut") if isinstance(metrics, dict) else None
    if isinstance(cut, int | float) and free:
        scores["label_free_score_cut"] = f"{cut:.6f}"
    return scores
