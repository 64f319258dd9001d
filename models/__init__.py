"""How: networks, losses and image geometry. Tensors in, tensors out; no file, no params, no logging."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interface import Segmenter
    from .mosis.config import MosisConfig

    Builder = Callable[[Any, tuple[int, int]], Segmenter]


def _build_mosis(config: MosisConfig, size: tuple[int, int]) -> Segmenter:
    # Imported here, so that reading parameters and listing methods stay free of torch's second of start-up.
    from .mosis.model import Mosis

    return Mosis(config, size)


METHODS: dict[str, Builder] = {"mosis": _build_mosis}
"""Every method that can be trained: name in params.yaml -> builder(its config, (height, width) of training)."""
