"""The registered model: what MLflow loads in a process that has never seen this repository.

MLflow keeps a copy of this file, so it imports nothing of ours: the networks' source lies beside the weights (artifact
"models") and is imported under a name of its own, so that two versions run side by side in one process. Nothing is
unpickled: weights are safetensors, parameters are YAML.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pycocotools.mask
import safetensors.torch
import torch
import yaml

BATCH = 16
PIXELS_AT_ONCE = 8_000_000
"""Pixels of the images predicted together; each may come back with dozens of masks of a byte a pixel."""
FORMAT = 1


class MosisModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Images in, instances out; loaded once, then only read."""

    def load_context(self, context: Any) -> None:
        artifacts = {name: Path(path) for name, path in context.artifacts.items()}
        document = yaml.safe_load(artifacts["params"].read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise ValueError(f"params.resolved.yaml is of format {document.get('format')}, not {FORMAT}")
        self.size = (int(document["size"][0]), int(document["size"][1]))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with _without_bytecode():
            package = import_snapshot(artifacts["models"])
            self.images = importlib.import_module(f"{package.__name__}.common.images")
            self.model = build_model(package, document["params"]["train"], self.size)
        self.model.load_state_dict(safetensors.torch.load_file(artifacts["weights"]), strict=True)
        self.model.to(self.device).to(memory_format=torch.channels_last).eval()

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Instances of each image, best score first, in the image's own pixels.

        model_input: (N, H, W, 3) uint8 RGB of any size, or one image (H, W, 3).
        params: {"score_threshold": float in [0, 1]}; detections below it are dropped.
        Returns per image {"boxes": [[x1, y1, x2, y2], ...], "scores": [...], "masks": [COCO RLE, ...]}, x2 and y2
        exclusive edges. Raises ValueError for other dtypes and shapes.
        """
        images = check_images(model_input)
        threshold = (params or {}).get("score_threshold")
        found: list[dict[str, Any]] = []
        step = max(1, min(BATCH, PIXELS_AT_ONCE // (images.shape[1] * images.shape[2])))
        for start in range(0, len(images), step):
            found += self._predict_batch(images[start : start + step], threshold)
        return found

    @torch.inference_mode()
    def _predict_batch(self, images: np.ndarray, threshold: float | None) -> list[dict[str, Any]]:
        height, width = images.shape[1:3]
        small = np.stack([self.images.resize_frame(image, self.size) for image in images])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            predicted = self.model.predict(
                self.images.to_tensor(small, self.device), score_threshold=threshold, output_size=(height, width)
            )
        return [to_plain(instances) for instances in predicted]


def check_images(model_input: np.ndarray) -> np.ndarray:
    """As (N, H, W, 3) uint8. Raises ValueError in one line for anything else."""
    images = np.asarray(model_input)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 RGB in 0 to 255, not {images.dtype}: scale and convert them first")
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise ValueError(f"images must be (N, H, W, 3) or (H, W, 3), not {images.shape}")
    return images


def to_plain(instances: Any) -> dict[str, Any]:
    """Plain lists and COCO run lengths, ready for JSON."""
    masks = np.asfortranarray(instances.masks.cpu().numpy().transpose(1, 2, 0).astype(np.uint8))
    rles = pycocotools.mask.encode(masks) if len(instances) else []
    return {
        "boxes": instances.boxes.float().tolist(),
        "scores": instances.scores.float().tolist(),
        "masks": [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in rles],
    }


def import_snapshot(folder: Path) -> ModuleType:
    """Import the package in `folder`, which imports itself relatively only, under a name that no other version has."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    name = f"mosis_model_{digest.hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    try:
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules[name]
        raise
    return package


def build_model(package: ModuleType, train: dict[str, Any], size: tuple[int, int]) -> Any:
    """The untrained network of METHODS[train["method"]]. Its settings are the class named after the method in its
    config.py: mosis -> MosisConfig, some_method -> SomeMethodConfig.
    """
    method = train["method"]
    config = importlib.import_module(f"{package.__name__}.{method}.config")
    kind = getattr(config, "".join(part.capitalize() for part in method.split("_")) + "Config")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in train[method].items()}
    return package.METHODS[method](kind(**settings), size)


@contextlib.contextmanager
def _without_bytecode() -> Iterator[None]:
    """Leave no __pycache__ among the artifacts, which may be another's and read-only."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


mlflow.models.set_model(MosisModel())
