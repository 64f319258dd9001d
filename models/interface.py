"""What a method must offer to be trained, evaluated and exported by the one pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .common.instances import Instances
from .common.whole import WHOLE, WholeBatch

Needs = Literal["pairs", "labels", "own_labels", "truth", "optical_flow"]


@dataclass(frozen=True)
class Batch:
    """One training batch, already on the device.

    frame_a, frame_b: (B, 3, H, W) float32 RGB in [0, 1], frames t and t+1 of one clip each.
    dt: (B,) float32 seconds from a to b.
    labels: per image of frame_a the instances to learn from (scores are weights in [0, 1]), or None where the
        objective needs none. Training labels come from a labeller or, for supervised twins, from ground truth.
    optical_flow: (B, 2, H, W) float32 true motion from a to b in pixels, u then v, NaN where unknown, or None.
    frame_before: (B, 3, H, W) as frame_a, the frame as far before it as frame_b is after, for `infer`; else None.
    whole: the batch that these images are a part of, where several processes train together.
    """

    frame_a: Tensor
    frame_b: Tensor
    dt: Tensor
    labels: list[Instances] | None = None
    optical_flow: Tensor | None = None
    frame_before: Tensor | None = None
    whole: WholeBatch = WHOLE


class Segmenter(nn.Module):
    """A single-image, class-agnostic instance segmenter that can be trained.

    `needs` says what `loss` reads: "pairs" (frame_a and frame_b), or frame_a and labels, which are those of a labeller
    ("labels"), what the method infers itself from unlabelled frames ("own_labels"), or the clips' own ground truth
    ("truth", for supervised twins). For own labels: `infer` is asked before the training and, at equal parts of it,
    `rounds` times more, with frames that are `frame_gap` apart in their clip, about every `frame_step`-th of them.
    """

    needs: Needs = "pairs"
    frame_gap: int = 1
    frame_step: int = 1
    rounds: int = 0

    def infer(self, batch: Batch, *, with_network: bool) -> list[Instances]:
        """Instances of each of frame_a, inferred from frame_before and frame_b; scores are confidences in [0, 1].

        with_network: whether the network, as it has been trained so far, takes part. Only for own labels.
        """
        raise NotImplementedError

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar loss terms; "total" is the one to minimise, the others are its terms, unweighted or named so."""
        raise NotImplementedError

    def predict(
        self, images: Tensor, *, score_threshold: float | None = None, output_size: tuple[int, int] | None = None
    ) -> list[Instances]:
        """Instances of each of `images` (B, 3, H, W) float32 RGB in [0, 1], best score first.

        score_threshold: detections below it are dropped; None takes the method's own.
        output_size: (height, width) in pixels that boxes and masks are given in; None means the images' own.
        """
        raise NotImplementedError


class OpticalFlowEstimator(nn.Module):
    """Dense motion between two frames.

    `needs` says what `loss` reads: "pairs", "optical_flow" (both frames and the true motion), or None where there is
    nothing to train.
    """

    needs: Needs | None = None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar loss terms, as of a Segmenter."""
        raise NotImplementedError

    def estimate(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        """flow_uv (B, 2, H, W) float32 pixels, u to the right and v down: what is at x in a is at x + flow_uv(x) in b.

        frames_a, frames_b: (B, 3, H, W) float32 RGB in [0, 1], of any size.
        """
        raise NotImplementedError
