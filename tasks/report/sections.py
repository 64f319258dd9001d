"""What each section of the page says, ready for the template: facts and tables of plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import params as parameters
from tasks.lineage import flatten, hide_secrets
from tasks.metrics.table import further_scores
from tasks.report.inputs import Inputs
from tasks.report.words import count, duration, figure, share, words

SCORES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "small",
    "APm": "medium",
    "APl": "large",
    "AR1": "AR1",
    "AR10": "AR10",
    "AR100": "AR100",
}
"""Keys of metrics.json -> heads of the score table."""
SCORE_ROWS = {
    "mask": "masks",
    "box": "boxes",
    "mask_at_cut": "masks above the cut",
    "box_at_cut": "boxes above the cut",
}
LABEL_FREE = {
    "instances_per_frame": ("instances a frame", figure),
    "empty_share": ("frames with none", share),
    "mean_score": ("mean score", figure),
    "coverage": ("of each frame covered", share),
    "temporal_iou": ("mask IoU with the next frame", figure),
    "photometric_gain": ("gain of own motion over the background's", figure),
}
DROPPED = {
    "order": "timestamps that do not rise",
    "rate": "too far apart in time",
    "cut": "across a shot cut",
    "frozen": "nothing changes",
    "fast": "too fast to match",
}
MAX_ROWS = 200
"""Of a table on the page; the files have them all."""


@dataclass(frozen=True)
class Facts:
    """Names and values side by side."""

    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class Grid:
    """A table. left_out: rows that it should have and has not."""

    head: list[str]
    rows: list[list[str]]
    left_out: int = 0


def describe_run(inputs: Inputs) -> Facts:
    """What was run, where and how long."""
    train = inputs.train.value or {}
    rows: list[tuple[str, str]] = []
    if inputs.params.value is not None:
        chosen = inputs.params.value.train
        config = getattr(chosen, chosen.method)
        rows.append(("method", " · ".join([chosen.method, *_named(config, ("preset", "objective"))])))
    elif train:
        rows.append(("method", " · ".join(str(train[key]) for key in ("method", "objective") if train.get(key))))
    if inputs.size:
        rows.append(("frames trained on", f"{inputs.size[1]} × {inputs.size[0]} pixels"))
    makers: dict[str, Callable[[Any], str]] = {
        "parameters": count,
        "iterations": count,
        "seconds": duration,
        "images_per_s": lambda value: f"{figure(value)} images a second",
        "peak_mib": lambda value: f"{count(value)} MiB at most",
        "device": str,
    }
    names = {"seconds": "time", "images_per_s": "speed", "peak_mib": "memory"}
    rows += [(names.get(key, key), make(train[key])) for key, make in makers.items() if train.get(key) is not None]
    if train.get("resumed_at"):
        rows.append(("went on from", f"a checkpoint at iteration {count(train['resumed_at'])}"))
    labels = _inner(train, "labels")
    if labels:
        rows.append(("learned from", f"{count(labels.get('count'))} labels on {count(labels.get('images'))} images"))
        rows.append(("labels made in", duration(labels.get("seconds"))))
        if labels.get("failed"):
            rows.append(("clips that could not be labelled", count(len(labels["failed"]))))
    if teacher := _inner(train, "teacher"):
        rows.append(("of them added by the teacher", f"{count(teacher.get('added'))} ({teacher.get('folder')})"))
    return Facts(rows)


def validation_split(inputs: Inputs) -> str:
    return str(_inner(inputs.train.value or {}, "validation").get("split") or "")


def headline_scores(inputs: Inputs) -> list[tuple[str, str]]:
    """The few figures to see first, (figure, what it is)."""
    metrics = inputs.metrics.value or {}
    if has_truth(metrics):
        wanted = (("mask", "AP50"), ("mask", "AP75"), ("mask", "AP"), ("box", "AP"))
        return [(figure(_inner(metrics, kind).get(score)), f"{kind} {score}") for kind, score in wanted]
    free = _inner(metrics, "label_free")
    return [(make(free[key]), name) for key, (name, make) in LABEL_FREE.items() if free.get(key) is not None]


def has_truth(metrics: Mapping[str, Any]) -> bool:
    return bool(metrics.get("images")) and any(v is not None for v in _inner(metrics, "mask").values())


def tabulate_scores(metrics: Mapping[str, Any]) -> Grid:
    rows = []
    for key, name in SCORE_ROWS.items():
        if scores := _inner(metrics, key):
            rows.append([name, *(figure(scores.get(score)) for score in SCORES)])
    return Grid(["", *SCORES.values()], rows)


def describe_label_free(metrics: Mapping[str, Any]) -> Facts:
    free = _inner(metrics, "label_free")
    known = [(name, make(free[key])) for key, (name, make) in LABEL_FREE.items() if key in free]
    others = [(words(key), figure(value)) for key, value in free.items() if key not in LABEL_FREE]
    return Facts(known + others)


def describe_further(metrics: Mapping[str, Any]) -> Facts:
    """The scores beside COCO's that the truth offered."""
    return Facts([(name, figure(value)) for name, value in further_scores(dict(metrics)).items()])


def describe_data(inputs: Inputs) -> Facts:
    rows = []
    if clips := inputs.clips.value:
        frames, seconds = sum(clip.frames for clip in clips), sum(clip.seconds for clip in clips)
        sources = len({clip.source for clip in clips})
        rows.append(("clips", f"{count(len(clips))} from {count(sources)} source{'' if sources == 1 else 's'}"))
        rows.append(("with ground truth", f"{count(sum(clip.truth for clip in clips))} of them"))
        rows.append(("frames", f"{count(frames)}, {duration(seconds)}"))
    if inputs.pairs.value is not None:
        splits = ", ".join(f"{split} {count(number)}" for split, number in inputs.pairs.value.items())
        rows.append(("pairs", f"{count(sum(inputs.pairs.value.values()))}" + (f" ({splits})" if splits else "")))
    return Facts(rows)


def tabulate_dropped(inputs: Inputs) -> Grid:
    totals = _inner(inputs.dropped.value or {}, "total")
    rows = [[DROPPED.get(reason, words(reason)), count(number)] for reason, number in totals.items() if number]
    return Grid(["pairs dropped because", "pairs"], rows)


def tabulate_rejected(inputs: Inputs) -> Grid:
    """What any stage set aside, and why; a clip that several stages refused for one reason stands once."""
    rows = [(str(one.get("source", "")), str(one.get("reason", ""))) for one in inputs.rejected.value or ()]
    stages = ((inputs.dropped, "unreadable"), (inputs.metrics, "set_aside"), (inputs.labels, "set_aside"))
    for piece, key in stages:
        found = _list(piece.value or {}, key)
        rows += [(f"clip {one.get('clip_id', '')}", str(one.get("reason", ""))) for one in found]
    return _limit(["set aside", "why"], [[hide_secrets(cell) for cell in row] for row in dict.fromkeys(rows)])


def tabulate_clips(inputs: Inputs) -> Grid:
    head = ["clip", "source", "frames", "size", "Hz", "time", "split", "truth", "note"]
    rows = [
        [
            clip.clip_id,
            hide_secrets(clip.source),
            count(clip.frames),
            f"{clip.width} × {clip.height}",
            f"{clip.rate_hz:.4g}",
            duration(clip.seconds),
            clip.split or "",
            "yes" if clip.truth else "no",
            clip.note or "",
        ]
        for clip in inputs.clips.value or ()
    ]
    return _limit(head, rows)


def describe_labels(labels: Mapping[str, Any]) -> Facts:
    """The totals of the label files: whatever is a single value."""
    return Facts([(words(key), _show(value)) for key, value in labels.items() if not isinstance(value, dict | list)])


def tabulate_labelled_clips(labels: Mapping[str, Any]) -> Grid:
    """Counts per clip: `clips` is a list of mappings, or a mapping from clip id to one."""
    clips = _inner(labels, "clips")
    rows = [{"clip_id": key, **value} for key, value in clips.items() if isinstance(value, dict)]
    rows += _list(labels, "clips")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = [[hide_secrets(_show(row.get(key, ""))) for key in keys] for row in rows]
    return _limit([words(key) for key in keys], shown)


def describe_thresholds(params: parameters.Params) -> Facts:
    evaluate, export = params.evaluate, params.export
    rows = [
        ("scores below are not scored at all", figure(evaluate.score_floor)),
        ("the cut of the score table", figure(evaluate.score_cut)),
        ("smallest score of a label", figure(export.score_threshold)),
        ("mask IoU that continues a track", figure(export.link_iou)),
        ("frames of the shortest track", count(export.min_track_frames)),
    ]
    config = getattr(params.train, params.train.method)
    names = {
        "score_threshold": "the method's own score threshold",
        "nms_iou": "box IoU above which the weaker detection goes",
        "mask_threshold": "probability from which a pixel belongs to a mask",
        "top_k": "most detections an image",
    }
    rows += [(name, _show(getattr(config, key))) for key, name in names.items() if hasattr(config, key)]
    return Facts(rows)


def describe_lineage(inputs: Inputs) -> Facts:
    """Where this came from: revisions, fingerprints, the tracked run."""
    names = {"git_revision": "git revision", "dvc_md5_pairs": "DVC MD5 of the pairs"}
    rows = [(names.get(key, words(key)), value) for key, value in inputs.revisions.items()]
    summary = flatten({k: v for k, v in (inputs.train.value or {}).items() if k != "labels"})
    is_origin = ("run_id", "fingerprint", "sha256", "md5", "revision", "version")
    rows += [
        (words(key.replace(".", ", ")), _show(value))
        for key, value in summary.items()
        if value not in (None, "") and any(mark in key for mark in is_origin)
    ]
    return Facts(rows)


def list_params(params: parameters.Params) -> Facts:
    flat = flatten(parameters.to_dict(params))
    return Facts([(key, hide_secrets(_show(value))) for key, value in flat.items()])


def _named(config: Any, keys: Iterable[str]) -> list[str]:
    return [str(getattr(config, key)) for key in keys if hasattr(config, key)]


def _limit(head: list[str], rows: Sequence[list[str]]) -> Grid:
    return Grid(head, list(rows[:MAX_ROWS]), max(0, len(rows) - MAX_ROWS))


def _inner(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _list(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = document.get(key)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
