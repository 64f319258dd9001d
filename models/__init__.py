"""How: networks, losses and image geometry. Tensors in, tensors out; no file, no params, no logging."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .amd.config import AmdConfig
    from .interface import OpticalFlowEstimator, Segmenter
    from .mosis.config import MosisConfig
    from .optical_flow.config import DisConfig, PwcLiteConfig, RaftConfig
    from .yolo_supervised.config import YoloSupervisedConfig

    Builder = Callable[[Any, tuple[int, int]], Segmenter]
    FlowBuilder = Callable[[Any], OpticalFlowEstimator]


def _build_mosis(config: MosisConfig, size: tuple[int, int]) -> Segmenter:
    # Imported here, so that reading parameters and listing methods stay free of torch's second of start-up.
    from .mosis.model import Mosis

    return Mosis(config, size)


def _build_yolo_supervised(config: YoloSupervisedConfig, size: tuple[int, int]) -> Segmenter:
    from .yolo_supervised.model import YoloSupervised

    return YoloSupervised(config, size)


def _build_amd(config: AmdConfig, size: tuple[int, int]) -> Segmenter:
    from .amd.model import Amd

    return Amd(config, size)


METHODS: dict[str, Builder] = {
    "mosis": _build_mosis,
    "yolo_supervised": _build_yolo_supervised,
    "amd": _build_amd,
}
"""Every method that can be trained: name in params.yaml -> builder(its config, (height, width) of training)."""


def _build_pwc_lite(config: PwcLiteConfig) -> OpticalFlowEstimator:
    from .optical_flow.pwc_lite import PwcLite

    return PwcLite(config)


def _build_raft(config: RaftConfig) -> OpticalFlowEstimator:
    from .optical_flow.raft import Raft

    return Raft(config)


def _build_dis(config: DisConfig) -> OpticalFlowEstimator:
    from .optical_flow.dis import Dis

    return Dis(config)


OPTICAL_FLOW: dict[str, FlowBuilder] = {"pwc_lite": _build_pwc_lite, "raft": _build_raft, "dis": _build_dis}
"""Every estimator of dense motion: name -> builder(its config)."""
