"""The one training loop, for every method.

All randomness follows from (seed, iteration): the order of samples, augmentation and torch's generators. A checkpoint
therefore holds no generator state, and a run that was killed ends with the weights of one that was not, bit for bit on
a CPU with the same number of threads.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.interface import Batch, OpticalFlowEstimator, Segmenter
from tasks.errors import CollapseError, MosisError, ParamsError
from tasks.precision import autocast_dtype
from tasks.prefetch import prefetch
from tasks.training.batches import (
    torch_seed,
)
from tasks.training.checkpoint import Checkpoints, Found, State
from tasks.training.collapse import CollapseWatch, PredictionStats, explain_divergence
from tasks.training.distributed import ALONE, Losses, Ranks
from tasks.training.divergence import first_broken, save_batch
from tasks.training.optimise import Optimisation, build_optimizer, learning_rate_at
from tasks.training.own_labels import collect_labels
from tasks.training.reader import Reader
from tasks.training.self_training import round_starts
from tasks.training.staging import ResidentFrames, Stager, keep_frames

if TYPE_CHECKING:
    from tasks.frames import FrameStore
    from tasks.labels import LabelStore

Relabel = Callable[[int, Segmenter], "LabelStore"]

LOG_EVERY = 10
"""Iterations averaged into one line of losses; reading a loss makes a GPU wait, so it is not done at each step."""


@dataclass(frozen=True)
class Recipe:
    """What shapes a training beside model, data and labels; names and meanings are those of params.yaml."""

    optimisation: Optimisation
    batch_size: int
    seed: int = 0
    precision: str = "auto"
    augment: bool = True
    copy_paste: bool = False
    self_training: int = 0
    validate_every: int = 200
    collapse_patience: int = 3


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to hear of.

    on_resume: (iteration) of the checkpoint that the run goes on from, 0 for a fresh start; notes say why.
    on_log: (iteration, mean of each loss term since the last call, with learning_rate and images_per_s).
    on_validate: (iteration, the model that fit was given, in evaluation mode) -> what it predicts, or None to skip the
        collapse check.
    on_checkpoint: (iteration), before the checkpoint is written: what the caller keeps must not fall behind it.
    """

    on_resume: Callable[[int, list[str]], None] = lambda iteration, notes: None
    on_log: Callable[[int, dict[str, float]], None] = lambda iteration, values: None
    on_validate: Callable[[int, Any], PredictionStats | None] = lambda iteration, model: None
    on_checkpoint: Callable[[int], None] = lambda iteration: None


@dataclass(frozen=True)
class Fitted:
    """seconds: training time over all parts of a resumed run, without validation. images_per_s, peak_mib: of this
    process; peak_mib is the GPU's memory on CUDA, else the process' own. resumed_at: 0 where the run started fresh.
    """

    iterations: int
    resumed_at: int
    seconds: float
    images_per_s: float
    peak_mib: float


def fit(
    model: Segmenter | OpticalFlowEstimator,
    store: FrameStore,
    recipe: Recipe,
    *,
    labels: LabelStore | None = None,
    device: torch.device | str = "cpu",
    checkpoints: Checkpoints | None = None,
    hooks: Hooks | None = None,
    relabel: Relabel | None = None,
    ranks: Ranks = ALONE,
    resident: bool | None = None,
) -> Fitted:
    """Train `model` in place on the train split of `store`, going on from `checkpoints` where there is one that fits.

    labels: instances by row, for methods whose `needs` is "labels", or "truth" and then the store's own.
    relabel: called where a round begins with the model as it stands there, (round, model) -> the labels of that round.
    Rounds from 1 on are those of self-training, or of a method's own labels, which begin with round 0. A run that is
    resumed within a round asks for its labels again and must get the same. A method with labels of its own needs none
    unless there are checkpoints.
    ranks: the processes that train together, each of which must call this with the same; every batch is cut into a part
    for each. Hooks are heard in the first alone, and it alone writes checkpoints, which all must be able to read.
    resident: keep the frames of the train split on the device, as bytes; None does so on a GPU with room for them. Not
    with copy-paste, which puts frames together on the host. The same batches, to the bit; the time it takes to bring
    them there counts as training.
    Seeds torch's generators at every iteration.
    Raises CollapseError when training degenerates, NothingLeftError without samples, ParamsError for a batch size that
    the processes do not divide.
    """
    device = torch.device(device)
    _check(model, recipe, labels, checkpoints, relabel, ranks)
    labels = labels if model.needs in ("labels", "truth") else None
    if model.needs == "own_labels" and relabel is None:
        relabel = partial(collect_labels, store=store, device=device)
    rounds = count_rounds(model, recipe) if relabel else 0
    read = None if model.needs == "own_labels" else Reader(store, labels, model, recipe, ranks)
    with numerics(device):
        run = _Run(model, recipe, device, checkpoints, hooks if hooks and ranks.first else Hooks(), ranks)
        started_at = run.resume()
        starts = [0, *round_starts(recipe.optimisation.iterations, rounds), recipe.optimisation.iterations]
        pastes = model.needs in ("labels", "truth", "own_labels") and recipe.augment and recipe.copy_paste
        if started_at < recipe.optimisation.iterations and not pastes:
            run.frames = keep_frames(store, device, wanted=resident)
        for number, (start, stop) in enumerate(pairwise(starts)):
            if started_at >= stop:
                continue
            if read is None or number:
                assert relabel is not None
                assert isinstance(model, Segmenter)
                read = Reader(store, relabel(number, model), model, recipe, ranks)
            run.advance_over(read, max(start, started_at), stop)
    return run.finish(started_at)


def _check(
    model: Segmenter | OpticalFlowEstimator,
    recipe: Recipe,
    labels: LabelStore | None,
    checkpoints: Checkpoints | None,
    relabel: Relabel | None,
    ranks: Ranks,
) -> None:
    """Raises what `fit` raises of arguments that do not go together."""
    if recipe.batch_size % ranks.count:
        raise ParamsError(
            f"train.batch_size: {recipe.batch_size} is the batch of all {ranks.count} training processes together: "
            f"take a multiple of {ranks.count}"
        )
    if model.needs is None:
        raise ValueError(f"{type(model).__name__} has nothing to train")
    if model.needs in ("labels", "truth") and labels is None:
        raise ValueError(f"{type(model).__name__} learns from labels and was given none")
    if model.needs == "own_labels" and relabel is None and checkpoints is not None:
        raise ValueError("to be resumed, a method that infers its own labels needs `relabel` to keep those of a round")


def count_rounds(model: Segmenter | OpticalFlowEstimator, recipe: Recipe) -> int:
    """How often labels are made anew: the method's own count where it makes them, else that of self-training."""
    return model.rounds if isinstance(model, Segmenter) and model.needs == "own_labels" else recipe.self_training


@dataclass
class _Run:
    model: Segmenter | OpticalFlowEstimator
    recipe: Recipe
    device: torch.device
    checkpoints: Checkpoints | None
    hooks: Hooks
    ranks: Ranks
    iteration: int = 0
    seconds: float = 0.0
    images: int = 0
    window: list[dict[str, Tensor]] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    frames: ResidentFrames | None = None

    def __post_init__(self) -> None:
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.model.train()
        self.ranks.prepare(self.model)
        self.optimizer: Optimizer = build_optimizer(self.model, self.recipe.optimisation)
        self.watch = CollapseWatch(self.recipe.collapse_patience)
        self.dtype = autocast_dtype(self.recipe.precision, self.device)
        self.earlier_seconds = 0.0
        self.window_started = time.perf_counter()

    def resume(self) -> int:
        found = self._load()
        state = found.state if found is not None else None
        if state is not None:
            self.model.load_state_dict(state.model)
            self.optimizer.load_state_dict(state.optimizer)
            self.iteration, self.earlier_seconds, self.watch.streak = state.iteration, state.seconds, state.streak
        if self.ranks.share(self.iteration) != self.iteration:
            raise MosisError(
                "the training processes see different checkpoints: the workspace must lie on a file system that all "
                "share"
            )
        self.losses = self.ranks.wrap(self.model)
        self.hooks.on_resume(self.iteration, found.notes if found is not None else [])
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.window_started = self.saved_at = time.perf_counter()
        return self.iteration

    def _load(self) -> Found | None:
        """The first process goes ahead: what does not fit is gone when the others look."""
        if self.checkpoints is None:
            return None
        if not self.ranks.first:
            self.ranks.wait()
        found = self.checkpoints.load()
        if self.ranks.first:
            self.ranks.wait()
        return found

    def advance_over(self, reader: Reader, start: int, stop: int) -> None:
        """The steps of iterations [start, stop), their batches read ahead."""
        stager, resident = Stager(self.device, self.frames), self.frames is not None
        batches = prefetch(lambda i: stager.ahead(reader.read(i, resident=resident)), start, stop)
        with contextlib.closing(batches):
            for batch in batches:
                self.advance(stager.finish(batch), reader)

    def advance(self, batch: Batch, reader: Reader) -> None:
        """One step and whatever is due after it. Validation comes before the checkpoint, so that none is lost.

        reader: has the same batch again, should it break the training.
        """
        torch.manual_seed(torch_seed(self.recipe.seed, self.iteration))
        rate = learning_rate_at(self.iteration, self.recipe.optimisation)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clip = self.recipe.optimisation.clip_grad_norm
        batch = replace(batch, whole=self.ranks.whole)
        step = train_step(self.model, self.optimizer, batch, dtype=self.dtype, clip=clip, losses_of=self.losses)
        self.window.append(step)
        self.readers.append(reader)
        self.iteration += 1
        last = self.iteration == self.recipe.optimisation.iterations
        validates = last or self.iteration % self.recipe.validate_every == 0
        saves = self.checkpoints is not None and (last or self.iteration % self.checkpoints.every == 0)
        if validates or saves or self.iteration % LOG_EVERY == 0:
            self._log(rate)
            if validates:
                self._validate()
            if saves:
                self._save(last=last)
            self.window_started = time.perf_counter()

    def finish(self, started_at: int) -> Fitted:
        rate = self.images / self.seconds if self.seconds else 0.0
        seconds = self.earlier_seconds + self.seconds
        return Fitted(self.iteration, started_at, seconds, rate, peak_mib(self.device))

    def _log(self, rate: float) -> None:
        steps = _fetch(self.window, self.ranks)
        values = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        seconds = time.perf_counter() - self.window_started
        images = len(self.window) * self.recipe.batch_size
        self.seconds += seconds
        self.images += images
        broken = first_broken(steps)
        if broken is not None:
            self._stop(steps[broken], self.iteration - len(steps) + broken, self.readers[broken], rate)
        self.window, self.readers = [], []
        self.hooks.on_log(self.iteration, {**values, "learning_rate": rate, "images_per_s": images / seconds})

    def _stop(self, losses: dict[str, float], number: int, reader: Reader, rate: float) -> None:
        """End the training at a loss that is no number, and keep batch `number`, the first that gave one."""
        kept = None
        if self.checkpoints is not None and self.ranks.first:
            kept = save_batch(self.checkpoints.folder, reader.read_whole(number), number)
        raise CollapseError(explain_divergence(losses, self.iteration, rate, kept))

    def _validate(self) -> None:
        stats = None
        if self.ranks.first:
            self.model.eval()
            with torch.no_grad():
                stats = self.hooks.on_validate(self.iteration, self.model)
            self.model.train()
        stats = self.ranks.share(stats)
        if stats is not None:
            self.watch.see(stats, self.iteration, self.recipe.optimisation.iterations)

    def _save(self, *, last: bool) -> None:
        """By the first process alone, which alone says whether it is time: the clocks of others differ."""
        assert self.checkpoints is not None
        early = time.perf_counter() - self.saved_at < self.checkpoints.seconds
        if not self.ranks.first or (early and not last):
            return
        self.hooks.on_checkpoint(self.iteration)
        seconds = self.earlier_seconds + self.seconds
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        self.checkpoints.save(State(self.iteration, model, optimizer, seconds, self.watch.streak))
        self.saved_at = time.perf_counter()


def _fetch(steps: list[dict[str, Tensor]], ranks: Ranks) -> list[dict[str, float]]:
    """The losses of several steps as numbers, those of the whole batches, brought from the device in one piece."""
    names = list(steps[0])
    table = ranks.mean(torch.stack([torch.stack([step[name] for name in names]) for step in steps])).tolist()
    return [dict(zip(names, row, strict=True)) for row in table]


def train_step(
    model: Segmenter | OpticalFlowEstimator,
    optimizer: Optimizer,
    batch: Batch,
    *,
    dtype: torch.dtype | None,
    clip: float | None,
    losses_of: Losses | None = None,
) -> dict[str, Tensor]:
    """Forward, backward, update. Returns the loss terms, detached, still on the device.

    dtype: autocast to it, None for float32 throughout. clip: largest gradient norm, None for no bound. losses_of: what
    stands for model.loss, where several processes train.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.frame_a.device.type, dtype, enabled=dtype is not None):
        losses = (losses_of or model.loss)(batch)
    losses["total"].backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return {name: value.detach().float() for name, value in losses.items()}


def peak_mib(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU's tensors on CUDA, else of this process (ru_maxrss is KiB on Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@contextlib.contextmanager
def numerics(device: torch.device) -> Iterator[None]:
    """Exact on a CPU, fast on a GPU; what was set before comes back."""
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark, matmul = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    try:
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        else:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(matmul)
