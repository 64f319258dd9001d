"""What each choice is worth, on the thesis' generated video: `python -m benchmarks.ablations --rows NAME ...`.

Groups of rows that differ in one thing; all rows of a group train for the same number of iterations. Rows of several
groups that are the same training are trained once. A row whose setting does not exist in this version is left out and
named. Without --rows all groups run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from benchmarks.data import Dataset
from benchmarks.harness import Report, add_options, at_least, cache_folder, start
from benchmarks.plans import run_plans
from benchmarks.tables import format_rows, summarise
from benchmarks.training import INFERENCE, Plan, check_settings, find_config
from models.motion_labels.config import MotionLabelsConfig
from tasks.errors import ParamsError
from tasks.training.loop import Recipe
from tasks.training.optimise import Optimisation

RATE_HZ = 24
_LITERAL = {"objective": "literal", **INFERENCE}
_LABELS: dict[str, Any] = {"labels": "motion", "settings": {"objective": "motion_labels", **INFERENCE}}

_WARM: dict[str, Any] = {"warm": 300, "recipe": {"learning_rate": 1e-4}}
"""Rows that begin with a network that knows something, and go on from there at the thesis' learning rate: at that of
params.yaml eq. 9-16 undo within 40 iterations what it knew."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--videos", type=at_least(1), default=24)
    parser.add_argument("--frames", type=at_least(2), default=120)
    parser.add_argument("--fresh", type=at_least(0), default=0, help="videos that belong to no split")
    parser.add_argument("--iterations", type=at_least(1), default=500, help="of batch 16, for every row")
    parser.add_argument("--rows", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="groups of rows")
    options = parser.parse_args()
    report = Report("ablations", options)
    plans, missing = make_plans(options)
    with cache_folder(options) as cache:
        run_plans(report, plans, cache)
    report.finish(format_rows(report.rows), summary=summarise(report.rows, twin=""), left_out=missing)


def make_plans(options: argparse.Namespace) -> tuple[list[Plan], dict[str, str]]:
    """Plans, and why rows were left out."""
    plans: list[Plan] = []
    missing: dict[str, str] = {}
    for seed in options.seeds:
        for group in options.rows:
            for name, changes in GROUPS[group].items():
                try:
                    check(changes)
                except ParamsError as error:
                    missing[f"{group}: {name}"] = str(error)
                    continue
                plans.append(make_plan(f"{group}: {name}", changes, seed, options))
    for name, reason in missing.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    return plans, missing


def make_plan(kind: str, changes: dict[str, Any], seed: int, options: argparse.Namespace) -> Plan:
    step = changes.get("step", 1)
    data = Dataset(seed, options.videos, {"frames": options.frames}, step=step, fresh=options.fresh)
    own = {name: value for name, value in changes.items() if name != "step"}
    return Plan(f"{kind}, seed {seed}", kind, data, **own, seed=seed, iterations=options.iterations)


def check(changes: dict[str, Any]) -> None:
    """Raises ParamsError where the method or training of this version has no such setting."""
    method = changes.get("method", "mosis")
    check_settings(find_config(method), changes.get("settings", {}), f"method {method}")
    check_settings(MotionLabelsConfig, changes.get("labeller", {}), "the motion labeller")
    known = {one.name for one in fields(Optimisation)}
    own = {name: value for name, value in changes.get("recipe", {}).items() if name not in known}
    check_settings(Recipe, own, "training")


def _literal(**settings: Any) -> dict[str, Any]:
    return {"settings": {**_LITERAL, **settings}}


def _em(**settings: Any) -> dict[str, Any]:
    return {"settings": {"objective": "em", **INFERENCE, **settings}}


def _on_warm(**settings: Any) -> dict[str, Any]:
    """Eq. 9-16 from a network that finds the instances already: what the losses make of it. Motion in closed form, as
    a motion network that has learnt nothing would mislead them."""
    return {**_literal(**{"segment_motion": "closed_form", **settings}), **_WARM}


def _rates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Frames left out of the train clips, so that what moves p pixels a frame moves `step` times as far; no pair is
    dropped for being slow (thesis: 2 Hz failed, 12 Hz worked)."""
    for step in (1, 2, 4, 12):
        name = f"{RATE_HZ // step} Hz"
        yield f"motion_labels, {name}", {**_LABELS, "step": step}
        # The same time between the frames compared, as far as there are frames.
        yield f"em, {name}", {**_em(frame_gap=max(1, 4 // step)), "step": step}


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "objectness target": {name: _literal(objectness_target=name) for name in ("literal", "inverted", "gain")},
    "warp direction": {name: _literal(warp_direction=name) for name in ("literal", "consistent")},
    "error loss": {
        f"{scale}, {normalisation}": _literal(
            objectness_target="literal", error_scale=scale, target_normalisation=normalisation
        )
        for scale in ("literal", "half")
        for normalisation in ("minmax", "max", "none")
    },
    "objective": {"literal, motion by MLP": _literal(), "em, motion in closed form": _em()},
    "motion by": {
        "literal, MLP": _literal(segment_motion="mlp"),
        "literal, closed form": _literal(segment_motion="closed_form"),
    },
    "photometric error": {name: _literal(photometric=name) for name in ("ssim", "ssim_l1")},
    "em, motion model": {name: _em(motion_model=name) for name in ("affine", "translation")},
    "frame gap": {f"{gap} frames": _em(frame_gap=gap) for gap in (1, 2, 4, 8)},
    "em, E-steps": {f"{rounds + 1}": _em(rounds=rounds) for rounds in (0, 1, 2, 4)},
    "outlines by colour": {"with": _LABELS, "without": {**_LABELS, "labeller": {"settle_outlines": False}}},
    "temporal consensus": {"default window": _LABELS, "window 0": {**_LABELS, "labeller": {"window": 0}}},
    "labels' colours": {"with": _LABELS, "without": {**_LABELS, "labeller": {"appearance": 0.0}}},
    "copy-paste": {name: {**_LABELS, "recipe": {"copy_paste": name == "with"}} for name in ("with", "without")},
    "self-training": {f"{rounds} rounds": {**_LABELS, "recipe": {"self_training": rounds}} for rounds in (0, 1, 2)},
    "photometric on the warm network": {
        "motion labels": _LABELS,
        "em from half on": {**_LABELS, "recipe": {"self_training": 1}, "rounds": "em"},
    },
    "eq. 9-16 on the warm network": {
        "motion labels go on": {**_LABELS, **_WARM},
        "objectness target gain": _on_warm(),
        "inverted": _on_warm(objectness_target="inverted"),
        "literal": _on_warm(objectness_target="literal"),
        "literal, E up to 2, not normalised": _on_warm(
            objectness_target="literal", error_scale="literal", target_normalisation="none"
        ),
        "literal, E up to 1, not normalised": _on_warm(objectness_target="literal", target_normalisation="none"),
        "gain, SSIM + L1": _on_warm(photometric="ssim_l1"),
        "gain, masks alone": _on_warm(lambda_obj=0.0),
        "gain, motion by MLP": _on_warm(segment_motion="mlp"),
        "gain, motion by MLP, eq. 9 as written": _on_warm(segment_motion="mlp", warp_direction="literal"),
    },
    "frame rate": dict(_rates()),
}
"""Group -> row -> what it changes of a Plan (and `step` of its Dataset)."""


if __name__ == "__main__":
    start(main)
