"""Several processes, each with its part of every batch, that train one model: the same steps as one process makes.

Data-parallel training as in Li et al., "PyTorch Distributed" (VLDB 2020): every process holds the whole model, and
gradients are averaged. What one process would take over the whole batch is taken over the parts of all: the numbers
that losses divide by and draw, and the statistics of batch normalisation.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.common.whole import WHOLE, WholeBatch
from models.interface import Batch, OpticalFlowEstimator, Segmenter
from tasks.errors import MosisError, ParamsError
from tasks.training.joint_norm import join_norms
from tasks.training.ranks import Rank

T = TypeVar("T")
Losses = Callable[[Batch], Mapping[str, Tensor]]

_STEP_TIMEOUT = timedelta(minutes=10)
_WAIT_TIMEOUT = timedelta(days=7)
"""Of what waits for rank 0 alone: it labels, infers labels and validates, which may take hours."""


class Ranks:
    """The processes that train together, seen from one of them. This class: there is one only."""

    number = 0
    count = 1
    whole: WholeBatch = WHOLE

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    def wait(self) -> None:
        """Until all have come here."""

    def share(self, value: T) -> T:
        """What the first one has of a picklable value."""
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all of a tensor without gradient."""
        return value

    def prepare(self, model: nn.Module) -> None:
        """Before the optimiser is made: let modules in `model` that look at a batch look at the whole one."""

    def wrap(self, model: Segmenter | OpticalFlowEstimator) -> Losses:
        """`model.loss`, whose gradients are those of the whole batch."""
        return model.loss


ALONE = Ranks()


class JointRanks(Ranks):
    """Several, in torch.distributed's default group; control: a group on CPUs for what may take long."""

    def __init__(self, device: torch.device, control: dist.ProcessGroup) -> None:
        self.number, self.count = dist.get_rank(), dist.get_world_size()
        self._device, self._control = device, control
        self.whole = Part(self.number, self.count, control)

    def wait(self) -> None:
        dist.barrier(self._control)

    def share(self, value: T) -> T:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def mean(self, value: Tensor) -> Tensor:
        return _mean(value, self.count)

    def prepare(self, model: nn.Module) -> None:
        join_norms(model)

    def wrap(self, model: Segmenter | OpticalFlowEstimator) -> Losses:
        if not isinstance(model, Segmenter):
            raise ValueError(f"{type(model).__name__} trains in one process only: its losses know no parts of a batch")
        # Of 1x1 weights, whose layout in memory can be called by two names.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        devices = [self._device] if self._device.type == "cuda" else None
        # A batch without labels leaves the mask head without gradient, in one process or in all. Buffers are equal:
        # they follow from whole batches.
        return DistributedDataParallel(
            _Loss(model), device_ids=devices, forward_sync_buffers=False, find_unused_parameters=True
        )


class Part(WholeBatch):
    """A batch that is part `number` of `count` equal ones, in the order of ranks."""

    def __init__(self, number: int, count: int, control: dist.ProcessGroup | None = None) -> None:
        self.number, self.count = number, count
        self._control = control

    @overload
    def divisor(self, count: Tensor, *, images: int = 0) -> Tensor: ...
    @overload
    def divisor(self, count: int, *, images: int = 0) -> float: ...
    def divisor(self, count: Tensor | int, *, images: int = 0) -> Tensor | float:
        least = max(images * self.count, 1)
        if isinstance(count, Tensor):
            total = count.float()
            dist.all_reduce(total)
            return total.clamp(min=least) / self.count
        return max(sum(self._gather(count)), least) / self.count

    def mean(self, value: Tensor) -> Tensor:
        return _mean(value, self.count)

    def rand(self, rows: int, columns: int = 1, *, copies: int = 1) -> Tensor:
        counts = self._gather(rows)
        start = sum(counts[: self.number])
        return torch.rand(copies, sum(counts), columns)[:, start : start + rows]

    def _gather(self, number: int) -> list[int]:
        """`number` of each part."""
        numbers = torch.zeros(self.count, dtype=torch.int64)
        numbers[self.number] = number
        dist.all_reduce(numbers, group=self._control)
        return [int(one) for one in numbers]


class _Loss(nn.Module):
    """A model whose forward is its loss, which is what DistributedDataParallel looks at."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.model.loss(batch)


def _mean(value: Tensor, count: int) -> Tensor:
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / count


@contextlib.contextmanager
def join(rank: Rank, device: torch.device) -> Iterator[Ranks]:
    """Meet the others, leave them in the end. ALONE where there are none.

    Raises MosisError where one of them ends, or does not come.
    """
    if rank.count == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    meeting = "env://" if rank.store is None else f"file://{rank.store}"
    with _others_may_end():
        dist.init_process_group(
            backend, init_method=meeting, rank=rank.number, world_size=rank.count, timeout=_STEP_TIMEOUT
        )
        try:
            control = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
            assert isinstance(control, dist.ProcessGroup)
            yield JointRanks(device, control)
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def _others_may_end() -> Iterator[None]:
    """One line instead of what gloo and nccl have to say of a connection that the other side closed."""
    signs = ("connection", "gloo", "nccl", "socket", "broken pipe", "peer")
    try:
        yield
    except RuntimeError as error:  # of which torch's DistError is one
        if not any(sign in str(error).lower() for sign in signs):
            raise
        raise MosisError("another process of this training has ended or cannot be reached: see what it said") from error


def choose_local_device(device: torch.device, rank: Rank) -> torch.device:
    """The GPU of this rank; a CPU stays what it is. Raises ParamsError where there are fewer GPUs than processes."""
    if device.type != "cuda" or rank.count == 1:
        return device
    if rank.local >= torch.cuda.device_count():
        raise ParamsError(
            f"{torch.cuda.device_count()} GPUs for {rank.local + 1} or more training processes on this machine: lower "
            "compute.train_processes (or torchrun's --nproc-per-node), or set train.device to cpu"
        )
    torch.cuda.set_device(rank.local)
    return torch.device("cuda", rank.local)


def check_alike(ranks: Ranks, own: Mapping[str, str]) -> None:
    """Raises MosisError where this process runs other code or parameters (named digests) than the first."""
    first: Any = ranks.share(dict(own))
    differing = sorted(name for name in own if own[name] != first.get(name))
    if differing:
        raise MosisError(
            f"training process {ranks.number} differs from the first in {', '.join(differing)}: start all alike"
        )
