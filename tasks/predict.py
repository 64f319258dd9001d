"""Trained weights as a function: frames of any size in, instances in each frame's own pixels out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import yaml

import models
from models.common.images import resize_frame, to_tensor
from models.common.instances import Instances
from models.interface import Segmenter
from tasks import params as parameters
from tasks.clips import ClipReader
from tasks.errors import DataError, MosisError
from tasks.precision import autocast_dtype, choose_device
from tasks.prefetch import prefetch

FORMAT = 1
"""Of params.resolved.yaml, which the train stage writes: format, size [height, width] and the full params."""
_MAX_SIDE = 4096
PIXELS_AT_ONCE = 8_000_000
"""Pixels of the frames predicted together; each may come back with dozens of masks of a byte a pixel."""
TRAIN_AGAIN = "run the train stage again (`dvc repro train`)"


class Predictor:
    """A segmenter ready for inference. Frames are stretched to the training size, as the pairs stage did it."""

    def __init__(
        self, model: Segmenter, size: tuple[int, int], device: torch.device | str = "cpu", precision: str = "auto"
    ) -> None:
        """size: (height, width) in pixels that `model` sees, precision: of params.train, both those of its training."""
        self.size = size
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._dtype = autocast_dtype(precision, self.device)

    @classmethod
    def load(cls, weights: Path, resolved: Path, device: str = "auto") -> Predictor:
        """Weights (safetensors) and the params.resolved.yaml that was written with them. device: auto, cpu or cuda.

        Raises DataError where a file is missing, broken or does not fit the other.
        """
        params, size = read_resolved(resolved)
        method = params.train.method
        try:
            model = models.METHODS[method](getattr(params.train, method), size)
        except (KeyError, AttributeError, ValueError) as error:
            raise DataError(f"{resolved}: cannot build a network from it ({error}): {TRAIN_AGAIN}") from None
        try:
            model.load_state_dict(safetensors.torch.load_file(weights), strict=True)
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{weights}: not readable weights ({_first_line(error)}): {TRAIN_AGAIN}") from None
        except RuntimeError as error:
            raise DataError(f"{weights} does not fit {resolved} ({_first_line(error)}): {TRAIN_AGAIN}") from None
        return cls(model, size, choose_device(device), params.train.precision)

    @torch.inference_mode()
    def __call__(self, frames: Sequence[np.ndarray], score_threshold: float | None = None) -> list[Instances]:
        """Instances of each frame (H, W, 3) uint8 RGB, best score first, on the CPU; no frames give [].

        Frames of one size go through the network together: the caller bounds the memory by how many it gives.
        score_threshold: detections below it are dropped; None takes the method's own.
        """

        def run(group: list[np.ndarray]) -> list[Instances]:
            size = (group[0].shape[0], group[0].shape[1])
            images = to_tensor(np.stack([resize_frame(frame, self.size) for frame in group]), self.device)
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
                found = self.model.predict(images, score_threshold=score_threshold, output_size=size)
            return [_to_cpu(instances) for instances in found]

        return by_size(frames, run)


def by_size(frames: Sequence[np.ndarray], run: Callable[[list[np.ndarray]], list[Instances]]) -> list[Instances]:
    """What `run` gives for the frames of each size together, in the order of `frames`."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        groups[frame.shape].append(index)
    found: dict[int, Instances] = {}
    for group in groups.values():
        found.update(zip(group, run([frames[index] for index in group]), strict=True))
    return [found[index] for index in range(len(frames))]


def predict_frames(
    predictor: Callable[[Sequence[np.ndarray], float | None], list[Instances]],
    reader: ClipReader,
    indices: Sequence[int],
    *,
    batch_size: int,
    score_threshold: float | None = None,
) -> Iterator[tuple[int, np.ndarray, Instances]]:
    """(index, frame, its instances) of one clip in the order of `indices`.

    One thread decodes and predicts ahead while the caller works on what it was given. Memory is bounded: large frames
    go through in smaller batches than `batch_size`.
    """
    step = _frames_at_once(batch_size, reader.info.height * reader.info.width)

    def predict(batch: int) -> list[tuple[int, np.ndarray, Instances]]:
        chosen = indices[batch * step : (batch + 1) * step]
        frames = [reader.frame(index) for index in chosen]
        return list(zip(chosen, frames, predictor(frames, score_threshold), strict=True))

    with contextlib.closing(prefetch(predict, 0, math.ceil(len(indices) / step), depth=1)) as batches:
        for batch in batches:
            yield from batch


@contextlib.contextmanager
def shared_cores() -> Iterator[None]:
    """Leave half the cores to what runs beside the network: decoding, linking, encoding.

    On two cores that others use as well, torch's threads waiting for each other cost more than the arithmetic.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _frames_at_once(batch_size: int, pixels: int) -> int:
    return max(1, min(batch_size, PIXELS_AT_ONCE // pixels))


def read_resolved(path: Path) -> tuple[parameters.Params, tuple[int, int]]:
    """The params that weights were trained with, and the network's (height, width). Raises DataError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not readable ({_first_line(error)}): {TRAIN_AGAIN}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}: {TRAIN_AGAIN} with this version")
    size = document.get("size")
    fits = isinstance(size, list) and len(size) == 2 and all(type(s) is int and 0 < s <= _MAX_SIDE for s in size)
    if not isinstance(size, list) or not fits:
        raise DataError(f"{path}: size must be [height, width] in pixels up to {_MAX_SIDE}: {TRAIN_AGAIN}")
    try:
        return parameters.parse(document.get("params"), name=str(path)), (size[0], size[1])
    except MosisError as error:
        raise DataError(f"{error}: {TRAIN_AGAIN}") from None


def _to_cpu(instances: Instances) -> Instances:
    """With float32 boxes and scores, which bfloat16 autocast may not give."""
    return dataclasses.replace(
        instances.to("cpu"), boxes=instances.boxes.cpu().float(), scores=instances.scores.cpu().float()
    )


def _first_line(error: Exception) -> str:
    """torch lists every key that is missing over many lines; the first two say enough."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
