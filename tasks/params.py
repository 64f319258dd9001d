"""The only reader of params.yaml: typed, frozen, validated before any work; an unknown key fails by name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from models.amd.config import AmdConfig
from models.mosis.config import MosisConfig, Objective
from models.motion_labels.config import MotionLabelsConfig
from models.yolo_supervised.config import YoloSupervisedConfig
from tasks.errors import ParamsError
from tasks.service_params import ServiceParams
from tasks.sources.params import (
    FORBID,
    DavisParams,
    ImageSide,
    NonNegativeFloat,
    NonNegativeInt,
    NuscenesParams,
    PositiveFloat,
    PositiveInt,
    Seed,
    Shape,
    Share,
    SyntheticParams,
    YoutubeVisParams,
)

STAGES = ("ingest", "pairs", "train", "evaluate", "export")
"""Stage = file in tasks/ = stage in dvc.yaml = task in flows/pipeline.py = key in params.yaml."""
BESIDE_STAGES = ("compute", "service")
"""Keys of params.yaml that are no stage: results do not depend on them, so dvc.yaml does not name them."""

_MAX_BYTES = 2**20
_BROKEN_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What PyYAML raises; beside its own for a tag that its value does not fit (`!!int a`), and for lists too deep."""


@dataclass(frozen=True)
class IngestParams:
    """Sources -> clip archives in data/clips."""

    __pydantic_config__: ClassVar = FORBID

    sources: Annotated[tuple[str, ...], Field(min_length=1)] = ("synthetic",)
    """`synthetic`; paths and fsspec URLs of videos, folders of videos, folders of images; or KIND:URL of a dataset,
    KIND being davis, nuscenes or youtube_vis."""
    min_rate_hz: PositiveFloat = 12.0
    """Slower video is refused: the objective needs small motion between frames (thesis 3.2)."""
    rate_tolerance: Share = 0.1
    """Share by which real, jittering timestamps may miss min_rate_hz."""
    rate_hz: PositiveFloat | None = None
    """Resample video that is faster than this down to it; null keeps every frame."""
    image_rate_hz: PositiveFloat | None = None
    """Rate of folders of images, which carry no timestamps."""
    max_side: Annotated[int, Field(ge=64)] | None = None
    """Scale decoded video down to this longer side, pixels; null keeps its size. Image files keep their bytes."""
    clip_seconds: PositiveFloat = 60.0
    """Longer video is cut into clips of this length, so that memory stays bounded and work spreads."""
    max_seconds: PositiveFloat | None = None
    """Read at most this much of each video."""
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    max_rejected_share: Share = 0.5
    """Fail when more than this share of the source files had to be set aside."""
    workers: NonNegativeInt = 0
    """Processes; 0 takes one per core."""
    synthetic: SyntheticParams = field(default_factory=SyntheticParams)
    davis: DavisParams = field(default_factory=DavisParams)
    nuscenes: NuscenesParams = field(default_factory=NuscenesParams)
    youtube_vis: YoutubeVisParams = field(default_factory=YoutubeVisParams)


@dataclass(frozen=True)
class PairsParams:
    """Clip archives -> frames at training size and the pairs among them, in data/pairs."""

    __pydantic_config__: ClassVar = FORBID

    height: ImageSide = 128
    width: ImageSide = 128
    """Training size; frames are stretched to it. Multiples of 32, the network's deepest stride."""
    min_rate_hz: PositiveFloat = 12.0
    """Pairs further apart than 1 / min_rate_hz seconds are dropped. A clip's own bound counts where it is lower:
    what a dataset's settings accepted when it was ingested."""
    rate_tolerance: Share = 0.1
    cut_threshold: Share = 0.5
    """Drop a pair across a shot cut: distance of the frames' colour histograms, 0 (alike) to 1."""
    frozen_threshold: NonNegativeFloat = 0.25
    """Drop a pair whose mean absolute difference is below this, grey levels of 255."""
    max_motion_px: PositiveFloat = 16.0
    """Drop a pair whose 90th-percentile motion exceeds this, pixels at training size."""
    train_share: Share = 0.7
    val_share: Share = 0.15
    """Splits are by source video, stable as videos are added; the rest is the test split."""
    max_rejected_share: Share = 0.5
    workers: NonNegativeInt = 0


@dataclass(frozen=True)
class TrainParams:
    """Pairs -> weights, one loop for every method."""

    __pydantic_config__: ClassVar = FORBID

    method: str = "mosis"
    """A key of models.METHODS; its settings stand under the same name below."""
    iterations: PositiveInt = 800
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-3
    warmup_iterations: NonNegativeInt = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: Literal["adamw", "adam"] = "adamw"
    clip_grad_norm: PositiveFloat | None = 5.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on CUDA, float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    augment: bool = True
    """Flips, transposes, colour permutation, inversion and jitter, the same for both frames of a pair."""
    copy_paste: bool = True
    """Part of augment: labelled objects are pasted into the batch's other images, where a method learns from labels."""
    self_training: NonNegativeInt = 0
    """Rounds in which the network, part-way through, adds objects that the motion labels miss."""
    self_training_score: Share = 0.5
    """Score from which on a detection is added."""
    teacher: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Folder, relative to the workspace, with weights.safetensors and params.resolved.yaml of an earlier model, which
    adds what the motion labels miss before the training. Other content needs another name, so put a digest in it."""
    teacher_min_score: Share = 0.5
    """Score from which on an instance of the teacher is added."""
    teacher_min_photometric_gain: Annotated[float, Field(ge=-1, le=1)] = 0.3
    """Least mean gain (docs/metrics.md) over its track; what never moves in its clip has none."""
    teacher_min_temporal_iou: Share = 0.5
    """Least mean, over its track, of the mask IoU with the frame before."""
    validate_every: PositiveInt = 200
    """Iterations between validations (AP where there is truth), sample pictures and collapse checks."""
    validation_images: PositiveInt = 96
    checkpoint_every: PositiveInt = 50
    """Iterations between checkpoints: what a kill can cost on a slow machine."""
    checkpoint_seconds: NonNegativeFloat = 30.0
    """Least time between checkpoints: what a kill can cost on a fast one, which would else write more than train."""
    collapse_patience: PositiveInt = 3
    """Fail after this many degenerate validations in a row."""
    workers: NonNegativeInt = 0
    """Processes for the labeller; 0 takes one per core."""
    seed: Seed = 0
    mosis: MosisConfig = field(default_factory=MosisConfig)
    yolo_supervised: YoloSupervisedConfig = field(default_factory=YoloSupervisedConfig)
    amd: AmdConfig = field(default_factory=AmdConfig)
    motion_labels: MotionLabelsConfig = field(default_factory=MotionLabelsConfig)


METHODS = ("mosis", "yolo_supervised", "amd")
"""What train.method may name: the keys of models.METHODS, which this module does without."""


@dataclass(frozen=True)
class EvaluateParams:
    """Weights + clips with truth -> COCO scores, curves and pictures."""

    __pydantic_config__: ClassVar = FORBID

    split: Literal["train", "val", "test", "all"] = "test"
    score_floor: Share = 0.02
    """Detections below this are not scored at all."""
    score_cut: Share = 0.4
    """The second set of scores keeps only detections above this, the thesis' s_min."""
    max_images: PositiveInt | None = None
    pictures: NonNegativeInt = 12
    batch_size: PositiveInt = 16


@dataclass(frozen=True)
class ExportParams:
    """Weights + clips -> pseudo-labels as COCO and YouTube-VIS JSON, and the report."""

    __pydantic_config__: ClassVar = FORBID

    score_threshold: Share = 0.4
    link_iou: Share = 0.3
    """Smallest mask IoU, after warping by optical flow, that continues a track."""
    min_track_frames: PositiveInt = 3
    """Shorter tracks are left out of ytvis.json."""
    batch_size: PositiveInt = 16


@dataclass(frozen=True)
class ComputeParams:
    """Where stages work."""

    __pydantic_config__: ClassVar = FORBID

    executor: Literal["local", "dask"] = "local"
    """Of ingest, pairs and the labeller: processes on this machine, or a Dask cluster."""
    dask_address: str | None = None
    """Of the cluster's scheduler, e.g. tcp://127.0.0.1:8786; needed for dask. All must share the file system."""
    train_processes: PositiveInt = 1
    """Processes on this machine that train together, on a GPU each where there are GPUs. train.batch_size stays that
    of all of them together. For several machines start the train stage with torchrun instead: docs/scaling.md."""


@dataclass(frozen=True)
class Params:
    __pydantic_config__: ClassVar = FORBID

    ingest: IngestParams = field(default_factory=IngestParams)
    pairs: PairsParams = field(default_factory=PairsParams)
    train: TrainParams = field(default_factory=TrainParams)
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)
    export: ExportParams = field(default_factory=ExportParams)
    compute: ComputeParams = field(default_factory=ComputeParams)
    service: ServiceParams = field(default_factory=ServiceParams)


_ADAPTER = TypeAdapter(Params)


def load(path: Path | str = "params.yaml") -> Params:
    """Read and validate params.yaml. Raises ParamsError naming the key, its place and the nearest right name."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ParamsError(f"{path} not found: run inside a workspace, or make one with `mosis init DIR`") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > _MAX_BYTES:
        raise ParamsError(f"{path} is larger than {_MAX_BYTES // 2**10} KiB: not a file of parameters")
    try:
        document = yaml.safe_load(data.decode())
    except _BROKEN_YAML as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    return parse({} if document is None else document, name=str(path))


def parse(document: Any, *, name: str = "params") -> Params:
    """Validate a plain mapping; `name` stands in messages for where it came from."""
    if not isinstance(document, dict):
        raise ParamsError(f"{name}: expected a mapping of stages ({', '.join(STAGES)}), not {type(document).__name__}")
    try:
        params = _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise ParamsError(f"{name}: {_explain(error)}") from None
    _check_together(params, name)
    return params


def to_dict(params: Any) -> dict[str, Any]:
    """Plain nested dict of any of the dataclasses above, tuples as lists: what is written, logged and hashed."""
    result = TypeAdapter(type(params)).dump_python(params, mode="json")
    assert isinstance(result, dict)
    return result


def _check_together(params: Params, name: str) -> None:
    if params.compute.executor == "dask" and params.compute.dask_address is None:
        raise ParamsError(
            f"{name}: compute.dask_address: needed where compute.executor is dask: the scheduler's address"
        )
    if params.train.batch_size % params.compute.train_processes:
        raise ParamsError(
            f"{name}: train.batch_size: {params.train.batch_size} is the batch of all "
            f"{params.compute.train_processes} compute.train_processes together: take a multiple of that"
        )
    synthetic = params.ingest.synthetic
    for key in ("objects", "radius", "speed", "background_zoom"):
        low, high = getattr(synthetic, key)
        if low > high:
            raise ParamsError(f"{name}: ingest.synthetic.{key}: {low} is above {high}: write [smallest, largest]")
    if not synthetic.shapes:
        raise ParamsError(f"{name}: ingest.synthetic.shapes: name at least one of {', '.join(typing.get_args(Shape))}")
    if params.pairs.train_share + params.pairs.val_share > 1:
        raise ParamsError(f"{name}: pairs.train_share + pairs.val_share is above 1: lower one of them")
    if params.train.method not in METHODS:
        hint = _nearest(params.train.method, [*METHODS])
        if params.train.method in typing.get_args(Objective):
            hint = f": it is an objective of mosis, train.mosis.objective: {params.train.method}"
        raise ParamsError(f"{name}: train.method: unknown method {params.train.method!r}{hint}")
    learns_motion_labels = params.train.method == "mosis" and params.train.mosis.objective == "motion_labels"
    if params.train.self_training and not learns_motion_labels:
        raise ParamsError(
            f"{name}: train.self_training: adds to motion labels, which this method does not learn from: set 0"
        )


def _explain(error: ValidationError) -> str:
    """The first fault in one line, with the nearest right name for an unknown key."""
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] in ("unexpected_keyword_argument", "extra_forbidden")), faults[0])
    location = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _keys_at(fault["loc"][:-1])
        return f"unknown key {location}{_nearest(str(fault['loc'][-1]), known)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "dataclass_type":
        message = f"holds keys ({', '.join(_keys_at(fault['loc']))}) and is no value itself"
    shown = repr(fault["input"])
    return f"{location}: {message[0].lower()}{message[1:]} (got {shown if len(shown) < 80 else shown[:77] + '...'})"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f": known are {', '.join(sorted(known))}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the dataclass at `location` in Params."""
    where: Any = Params
    for part in location:
        hints = typing.get_type_hints(where)
        where = hints.get(str(part), where)
        if isinstance(where, types.UnionType) or typing.get_origin(where) is typing.Union:
            where = next(a for a in typing.get_args(where) if dataclasses.is_dataclass(a))
    return [f.name for f in dataclasses.fields(where)]
