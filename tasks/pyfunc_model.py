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
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow.exceptions
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
MAX_IMAGES = 256
MAX_IMAGE_PIXELS = 4096 * 4096
"""Of one call, unless the environment says otherwise."""
FORMAT = 1


class ImageError(mlflow.exceptions.MlflowException, ValueError):
    """Images that are refused. As MLflow's own error it reaches the client of a server in one line, as status 400."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=mlflow.exceptions.INVALID_PARAMETER_VALUE)


class MosisModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Images in, instances out; loaded once, then only read."""

    def load_context(self, context: Any) -> None:
        artifacts = {name: Path(path) for name, path in context.artifacts.items()}
        self.network = Snapshot(artifacts["weights"], artifacts["params"], artifacts["models"])

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Instances of each image, best score first, in the image's own pixels.

        model_input: (N, H, W, 3) uint8 RGB of any size, or one image (H, W, 3).
        params: {"score_threshold": float in [0, 1]}; detections below it are dropped.
        Returns per image {"boxes": [[x1, y1, x2, y2], ...], "scores": [...], "masks": [COCO RLE, ...]}, x2 and y2
        exclusive edges. Raises ValueError for other dtypes and shapes, and for more than the limits allow.
        """
        images = check_images(model_input)
        threshold = (params or {}).get("score_threshold")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"score_threshold must lie in 0 to 1, not {threshold}")
        found: list[dict[str, Any]] = []
        step = max(1, min(BATCH, PIXELS_AT_ONCE // (images.shape[1] * images.shape[2])))
        for start in range(0, len(images), step):
            found += self._predict_batch(images[start : start + step], threshold)
        return found

    def _predict_batch(self, images: np.ndarray, threshold: float | None) -> list[dict[str, Any]]:
        return [to_plain(instances) for instances in self.network(images, threshold)]


class Snapshot:
    """A trained network under the code that it was registered with."""

    def __init__(self, weights: Path, params: Path, sources: Path, device: str = "auto") -> None:
        """weights: safetensors. params: params.resolved.yaml. sources: the folder `models`. device: auto, cpu or cuda.

        Raises ValueError where the params are of another format.
        """
        document = yaml.safe_load(params.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise ValueError(f"params.resolved.yaml is of format {document.get('format')}, not {FORMAT}")
        self.document = document
        self.size = (int(document["size"][0]), int(document["size"][1]))
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        with _without_bytecode():
            package = import_snapshot(sources)
            self.images = importlib.import_module(f"{package.__name__}.common.images")
            self.model = build_model(package, document["params"]["train"], self.size)
        # As `tasks.precision` says; models of before may not name it.
        precision = document["params"]["train"].get("precision", "auto")
        self.reduced = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        self.model.load_state_dict(safetensors.torch.load_file(weights), strict=True)
        self.model.to(self.device).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, threshold: float | None) -> list[Any]:
        """The snapshot's own Instances of each of (N, H, W, 3) uint8 RGB, best score first, in the images' pixels."""
        height, width = images.shape[1:3]
        small = np.stack([self.images.resize_frame(image, self.size) for image in images])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            found: list[Any] = self.model.predict(
                self.images.to_tensor(small, self.device), score_threshold=threshold, output_size=(height, width)
            )
        return found


def check_images(model_input: np.ndarray) -> np.ndarray:
    """As (N, H, W, 3) uint8. Raises ValueError in one line for anything else, and for more images or pixels than
    MOSIS_MAX_IMAGES and MOSIS_MAX_IMAGE_PIXELS of the environment allow: whoever asks a server cannot exhaust it.
    """
    images = np.asarray(model_input)
    if images.dtype != np.uint8:
        raise ImageError(f"images must be uint8 RGB in 0 to 255, not {images.dtype}: scale and convert them first")
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise ImageError(f"images must be (N, H, W, 3) or (H, W, 3), not {images.shape}")
    count, height, width = images.shape[:3]
    most, pixels = limit("MOSIS_MAX_IMAGES", MAX_IMAGES), limit("MOSIS_MAX_IMAGE_PIXELS", MAX_IMAGE_PIXELS)
    if count > most:
        raise ImageError(f"{count} images at once, more than {most}: send fewer, or set MOSIS_MAX_IMAGES")
    if height * width > pixels:
        raise ImageError(
            f"an image of {width} x {height}, more than {pixels} pixels: shrink it, or set MOSIS_MAX_IMAGE_PIXELS"
        )
    return images


def limit(name: str, otherwise: int) -> int:
    """A limit of the environment. Raises ImageError where it is no whole number above 0."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal() or int(text) == 0:
        raise ImageError(f"{name} must be a whole number above 0")
    return int(text)


def to_plain(instances: Any) -> dict[str, Any]:
    """Plain lists and COCO run lengths, ready for JSON."""
    # One by one: a copy of all masks of a large image would double its memory.
    rles = [pycocotools.mask.encode(np.asfortranarray(mask.cpu().numpy(), dtype=np.uint8)) for mask in instances.masks]
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
