"""Plans that train a method and score it: one row of a table each."""

from __future__ import annotations

import importlib
import time
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import models
from benchmarks.data import Dataset, Video, digest, digest_folders, open_fresh, open_motion_labels, open_video
from benchmarks.harness import Row, Setting, describe_plan, peak_mib
from benchmarks.scores import predict, recall_by_motion, score
from models.interface import Segmenter
from tasks.errors import ParamsError
from tasks.files import atomic_path
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.precision import autocast_dtype, choose_device
from tasks.training.loop import Fitted, Hooks, Recipe, fit
from tasks.training.optimise import Optimisation
from tasks.training.own_labels import check_any, collect_labels, infer_labels, round_samples, take
from tasks.training.self_training import relabel

INFERENCE = {"nms_iou": 0.5, "box_from_mask": True, "score_with_mask": True}
"""What params.yaml changes of the thesis' section 3.8 for its preset."""
SELF_TRAINING_SCORE = 0.5
"""params.yaml's train.self_training_score."""
_INFERRED = 160
"""Frames, at the least, that a method of own labels is timed over before a row of so many minutes; _WARM_UP before."""
_WARM_UP = 16
_MEASURED = 20
"""Iterations whose time says how many fit into a number of minutes."""
_NEVER = 10**9

Labels = Literal["truth", "motion", "none"]
Rounds = Literal["add", "em"]


@dataclass(frozen=True)
class Plan:
    """One row of a table.

    row: its name. kind: what rows of other seeds share, for means. labels: what a method that learns from labels is
    given; "truth" for a supervised twin. settings: of the method; labeller: of the motion labeller; recipe: changes to
    Recipe and Optimisation. minutes: of training by `clock_of`, instead of `iterations`; the number of iterations is
    then found by measuring the first few. minutes_of: name of the row whose minutes to take. yardstick: what that row
    trained (`as_yardstick`): its rate is measured anew beside this row's, since the rate of a busy machine changes from
    one quarter of an hour to the next. test_step: every test_step-th frame of the test split is scored. rounds: what
    those of recipe.self_training learn from: motion labels with what the network adds, or, in the frames in which it
    infers any, what objective `em` infers by photometric reconstruction with the network as it stands then. warm:
    iterations that motion labels train the appearance network for before the row's own begin, with the same settings
    but for the objective's; what it found by then stands in the row under "before".
    """

    row: str
    kind: str
    data: Dataset
    method: str = "mosis"
    settings: dict[str, Any] = field(default_factory=dict)
    labels: Labels = "none"
    labeller: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    iterations: int = 2000
    minutes: float | None = None
    minutes_of: str | None = None
    yardstick: dict[str, Any] | None = None
    seed: int = 0
    test_step: int = 1
    rounds: Rounds = "add"
    warm: int = 0


def train_row(plan: Plan, setting: Setting) -> Row:
    """Train and score. Raises ParamsError for a method or setting that does not exist, and what `fit` raises."""
    if plan.rounds != "add" and (plan.labels != "motion" or not plan.recipe.get("self_training")):
        raise ParamsError(f"rounds {plan.rounds!r} need motion labels and recipe.self_training")
    device = choose_device(setting.device)
    video = open_video(plan.data, setting.cache)
    labels, label_facts = choose_labels(plan, setting)
    torch.manual_seed(plan.seed)
    model = build_model(plan.method, plan.settings, video.store.size)
    before = warm_up(plan, model, video, setting, device)
    budget = plan.iterations if plan.minutes is None else fit_minutes(plan, video, labels, setting)
    recipe, started = make_recipe(plan, budget), time.process_time()
    again = make_relabel(plan, video.store, labels, device) if labels is not None and plan.labels == "motion" else None
    fitted = fit(model, video.store, recipe, labels=labels, device=device, relabel=again)
    cpu_minutes = (time.process_time() - started) / 60
    memory = fitted.peak_mib if device.type == "cuda" else peak_mib()
    return {
        "kind": plan.kind,
        **describe_training(plan, model, fitted, len(video.rows("train"))),
        "cpu_minutes": None if device.type == "cuda" else round(cpu_minutes, 3),
        **label_facts,
        "peak_mib": round(memory, 1),
        "threads": setting.threads,
        "jobs": setting.jobs,
        "device": device.type,
        **score_row(plan, model, video, setting, device),
        **before,
        "plan": describe_plan(plan),
    }


def warm_up(plan: Plan, model: Segmenter, video: Video, setting: Setting, device: torch.device) -> Row:
    """Give `model` the weights of the appearance network that plan.warm asks for, and say what it finds with them."""
    if not plan.warm:
        return {}
    missing, unknown = model.load_state_dict(open_warm(plan, setting), strict=False)
    if unknown or any(name.startswith("appearance.") for name in missing):
        raise ParamsError(f"method {plan.method} has not the appearance network that motion labels trained")
    model.to(device)
    return {"before": score_row(plan, model, video, setting, device)}


def open_warm(plan: Plan, setting: Setting) -> dict[str, Tensor]:
    """Weights of the appearance network after plan.warm iterations of motion labels, trained on the first call."""
    settings = {name: value for name, value in plan.settings.items() if name in ("preset", *INFERENCE)}
    settings["objective"] = "motion_labels"
    start = replace(
        plan, method="mosis", settings=settings, labels="motion", recipe={}, iterations=plan.warm, minutes=None
    )
    known = {name: getattr(start, name) for name in ("settings", "labeller", "iterations", "seed")}
    known |= {"data": asdict(plan.data), "device": choose_device(setting.device).type}
    path = setting.cache / f"warm-{digest(known, digest_folders('models', 'tasks', 'benchmarks'))}.pt"
    if not path.is_file():
        video = open_video(plan.data, setting.cache)
        labels, _ = choose_labels(start, setting)
        torch.manual_seed(plan.seed)
        model = build_model(start.method, settings, video.store.size)
        fit(model, video.store, make_recipe(start, plan.warm), labels=labels, device=choose_device(setting.device))
        with atomic_path(path) as partial_path:
            torch.save(model.state_dict(), partial_path)
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    return weights


def describe_training(plan: Plan, model: Segmenter, fitted: Fitted, train_frames: int) -> Row:
    """labels: whether people's labels were needed. minutes: of training without validation; a method's own labels are
    inferred within them, the motion labeller's time stands in `label_seconds`."""
    pairs = model.needs == "pairs"
    return {
        "method": plan.method,
        "objective": plan.settings.get("objective"),
        "labels": model.needs == "truth" or (model.needs == "labels" and plan.labels == "truth"),
        "preset": getattr(getattr(model, "config", None), "preset", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data_seed": plan.data.seed,
        "train_frames": train_frames,
        "seed": plan.seed,
        "iterations": fitted.iterations,
        "budget": "iterations" if plan.minutes is None else f"{plan.minutes:.2f} minutes at the measured rate",
        "minutes": round(fitted.seconds / 60, 3),
        "images_per_s": None if pairs else round(fitted.images_per_s, 2),
        "pairs_per_s": round(fitted.images_per_s, 2) if pairs else None,
    }  # fmt: skip


def score_row(plan: Plan, model: Segmenter, video: Video, setting: Setting, device: torch.device) -> Row:
    """Scores on the test split, the same again on the fresh videos, and recall of what stands still there."""
    dtype = autocast_dtype(make_recipe(plan, 1).precision, device)
    rows = video.rows("test")[:: plan.test_step]
    found = predict(model, video.store, rows, device=device, dtype=dtype)
    truth = video.truth(rows)
    scored: Row = {"images": len(rows), **score(found, truth)}
    still = recall_by_motion(found, truth, video.still_in(rows))
    if plan.data.fresh:
        fresh = open_fresh(plan.data, setting.cache)
        rows = fresh.rows("test")
        found = predict(model, fresh.store, rows, device=device, dtype=dtype)
        scored["fresh"] = {"images": len(rows), **score(found, fresh.truth(rows))}
    return {**scored, "recall": still}


def choose_labels(plan: Plan, setting: Setting) -> tuple[LabelStore | None, Row]:
    """What the row learns from, and what is to be said of it."""
    if plan.labels == "none":
        return None, {}
    if plan.labels == "truth":
        return open_video(plan.data, setting.cache).store.truth, {}
    motion = open_motion_labels(plan.data, plan.labeller, setting.cache)
    return motion.labels, {"label_seconds": motion.seconds, "label_scores": motion.scores}


def make_relabel(
    plan: Plan, store: FrameStore, labels: LabelStore, device: torch.device
) -> Callable[[int, Segmenter], LabelStore]:
    """The labels of the rounds of self-training, by plan.rounds."""

    def add_missing(number: int, model: Segmenter) -> LabelStore:
        items = relabel(model, store, labels, score_threshold=SELF_TRAINING_SCORE, device=device)
        return LabelStore.from_items(store.size, items)

    def infer_by_em(number: int, model: Segmenter) -> LabelStore:
        # Of every frame, so that as many are learnt from as before.
        settings = {**plan.settings, "objective": "em", "frame_step": 1}
        inferring = build_model(plan.method, settings, store.size).to(device)
        inferring.load_state_dict(model.state_dict())
        found = collect_labels(number, inferring, store=store, device=device)
        rows = np.union1d(labels.labelled_rows(), found.labelled_rows()).tolist()
        inferred = set(found.labelled_rows().tolist())
        return LabelStore.from_items(store.size, ((row, (found if row in inferred else labels)[row]) for row in rows))

    return infer_by_em if plan.rounds == "em" else add_missing


def build_model(method: str, settings: dict[str, Any], size: tuple[int, int]) -> Segmenter:
    """The method with its defaults but for `settings`. Raises ParamsError in one line for what does not exist."""
    if method not in models.METHODS:
        raise ParamsError(f"no method {method!r} yet: there are {', '.join(sorted(models.METHODS))}")
    return models.METHODS[method](build_config(method, settings), size)


def build_config(method: str, settings: dict[str, Any]) -> Any:
    """The method's settings with their defaults. Raises ParamsError for one that does not exist."""
    config_class = find_config(method)
    check_settings(config_class, settings, f"method {method}")
    return config_class(**settings)


def find_config(method: str) -> type:
    """A method's settings class: it is named after the method, which the registered model's loader relies on, too."""
    name = "".join(part.capitalize() for part in method.split("_")) + "Config"
    found: type = getattr(importlib.import_module(f"models.{method}.config"), name)
    return found


def check_settings(config_class: type, settings: dict[str, Any], owner: str) -> None:
    """Raises ParamsError in one line for a field or a named option that a settings class does not have."""
    hints = typing.get_type_hints(config_class)
    for name, value in settings.items():
        if name not in hints:
            raise ParamsError(f"{owner} has no setting {name!r} yet: there are {', '.join(sorted(hints))}")
        allowed = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is Literal else ()
        if allowed and value not in allowed:
            raise ParamsError(f"{owner} has no {name} {value!r} yet: there are {', '.join(map(str, allowed))}")


def make_recipe(plan: Plan, iterations: int) -> Recipe:
    """params.yaml's training, changed by plan.recipe; validation and with it the collapse check are left out."""
    optimisation = Optimisation(iterations, 3e-3, warmup_iterations=50, clip_grad_norm=5.0)
    recipe = Recipe(optimisation, batch_size=16, seed=plan.seed, copy_paste=True, validate_every=_NEVER)
    names = {one.name for one in fields(Optimisation)}
    check_settings(Recipe, {name: value for name, value in plan.recipe.items() if name not in names}, "training")
    own = {name: value for name, value in plan.recipe.items() if name not in names}
    changed = {name: value for name, value in plan.recipe.items() if name in names}
    return replace(recipe, optimisation=replace(optimisation, **changed), **own)


def fit_minutes(plan: Plan, video: Video, labels: LabelStore | None, setting: Setting) -> int:
    """How many iterations fit into plan.minutes, at least one: the learning rate's schedule has to know it beforehand.

    With a yardstick, into its iterations at the rate that it has now, measured before and after this row's own.
    """
    assert plan.minutes is not None
    device = choose_device(setting.device)
    yardstick = None if plan.yardstick is None else replace(plan, **plan.yardstick)
    theirs = [] if yardstick is None else [_time_yardstick(yardstick, video, setting)]
    torch.manual_seed(plan.seed)
    model = build_model(plan.method, plan.settings, video.store.size)
    sample, inferring = None, 0.0
    if model.needs == "own_labels":
        sample, inferring = time_inference(model, video.store, device)
    each = time_training(plan, model, video, labels, device, sample)
    budget = plan.minutes * 60
    if yardstick is not None:
        theirs.append(_time_yardstick(yardstick, video, setting))
        budget = yardstick.iterations * sum(theirs) / len(theirs)
    if inferring >= budget:
        raise ParamsError(f"inferring labels alone takes {inferring / 60:.1f} of the row's {budget / 60:.1f} minutes")
    return max(1, round((budget - inferring) / each))


def as_yardstick(plan: Plan) -> dict[str, Any]:
    """What decides how long an iteration of a plan takes, and how many it has."""
    names = ("method", "settings", "labels", "labeller", "recipe", "iterations")
    return {name: getattr(plan, name) for name in names}


def time_training(
    plan: Plan,
    model: Segmenter,
    video: Video,
    labels: LabelStore | None,
    device: torch.device,
    inferred: LabelStore | None = None,
) -> float:
    """Seconds by `clock_of` of an iteration, by the end of a short training of a model that is thrown away.

    inferred: labels that stand for those that the model would infer itself.
    """
    clock, seen = clock_of(device), [(0, 0.0)]
    hooks = Hooks(on_log=lambda iteration, values: seen.append((iteration, clock())))
    again = None if inferred is None else lambda number, current: inferred
    recipe = make_recipe(plan, _MEASURED)
    fit(model, video.store, recipe, labels=labels, device=device, hooks=hooks, relabel=again)
    (before, started), (iteration, stopped) = seen[-2:]
    return (stopped - started) / (iteration - before)


def _time_yardstick(plan: Plan, video: Video, setting: Setting) -> float:
    torch.manual_seed(plan.seed)
    model = build_model(plan.method, plan.settings, video.store.size)
    labels, _ = choose_labels(plan, setting)
    return time_training(plan, model, video, labels, choose_device(setting.device))


def clock_of(device: torch.device) -> Callable[[], float]:
    """What budgets are measured by, seconds: processor time of all threads of this process on a CPU, so that what else
    runs on the machine changes no row; on a GPU the clock's.
    """
    return time.perf_counter if device.type == "cuda" else time.process_time


def time_inference(model: Segmenter, store: FrameStore, device: torch.device) -> tuple[LabelStore, float]:
    """(labels that the model infers on some frames, the seconds by `clock_of` that all rounds will take in all).

    Round 0 does without the network, as in a training.
    """
    clock = clock_of(device)
    model.to(device)
    rounds = [round_samples(number, model, store) for number in range(model.rounds + 1)]
    # From all over the split, since a clip with many objects takes longer.
    some = take(rounds[-1], slice(None, None, max(1, len(rounds[-1]) // _INFERRED)))
    seconds, sample = 0.0, LabelStore.from_items(store.size, [])
    for with_network, of in ((False, rounds[:1]), (True, rounds[1:])):
        if of:
            infer = partial(infer_labels, model, store, with_network=with_network, device=device)
            next(infer(take(some, slice(_WARM_UP))), None)  # the first has the start-up in it
            started = clock()
            sample = LabelStore.from_items(store.size, infer(some))
            seconds += (clock() - started) / len(some) * sum(map(len, of))
    return check_any(sample), seconds
