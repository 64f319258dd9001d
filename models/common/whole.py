"""What a loss asks of the whole batch, of which the images at hand may be one part among several."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


class WholeBatch:
    """A batch that is all there is; what trains in several processes at once gives losses a subclass.

    There a batch is cut into equal parts of consecutive images, and the gradients of the parts are averaged. A mean
    over images or pixels needs nothing for that to be the whole batch's gradient. A loss that divides by a number it
    counted must divide by `divisor`, one that draws must draw by `rand`, and a statistic kept over batches must be
    `mean`. All parts must ask the same in the same order.
    """

    @overload
    def divisor(self, count: Tensor, *, images: int = 0) -> Tensor: ...
    @overload
    def divisor(self, count: int, *, images: int = 0) -> float: ...
    def divisor(self, count: Tensor | int, *, images: int = 0) -> Tensor | float:
        """What to divide a part's sum by: the whole batch's count, at least 1, over the number of parts.

        images: of this part, where the whole count shall be at least one an image.
        """
        least = max(images, 1)
        return count.clamp(min=least) if isinstance(count, Tensor) else max(count, least)

    def mean(self, value: Tensor) -> Tensor:
        """A mean over this part's images -> that over the whole batch's. Without gradient."""
        return value

    def rand(self, rows: int, columns: int = 1, *, copies: int = 1) -> Tensor:
        """(copies, rows, columns) float32 in [0, 1) of torch's CPU generator: what `rows` consecutive things of this
        part would have drawn in the whole batch, where those of all parts stand in a row, `copies` times over.
        """
        return torch.rand(copies, rows, columns)


WHOLE = WholeBatch()
