"""`mosis label` and `mosis serve`: a trained model at work, in any folder."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

CHAMPION = "models:/mosis@champion"


def add_commands(commands: Any) -> None:
    """commands: what argparse's add_subparsers gave."""
    label = commands.add_parser("label", help="label videos and pictures with a trained model")
    label.add_argument(
        "sources",
        nargs="+",
        metavar="VIDEO_OR_IMAGES",
        help="videos, pictures, folders of either, fsspec URLs",
    )
    _add_model(label)
    label.add_argument(
        "--out", required=True, metavar="DIR", help="a new folder, or one with older labels; an fsspec URL, too"
    )
    label.add_argument(
        "--score", type=_share, metavar="S", help="drop what scores less, 0 to 1 (default: the model's own threshold)"
    )
    label.add_argument(
        "--image-rate",
        type=_above_zero,
        metavar="HZ",
        help="take folders of pictures for videos of this rate (default: pictures of their own, without tracks)",
    )
    label.set_defaults(command=label_command)

    serve = commands.add_parser("serve", help="answer HTTP requests with a registered model, within limits")
    _add_model(serve)
    serve.add_argument("--host", default="127.0.0.1", help="interface to listen on (default: this machine alone)")
    serve.add_argument("--port", type=_port, default=5001)
    serve.add_argument(
        "--max-request-mib", type=_above_zero, default=40, metavar="MIB", help="refuse larger requests (default: 40)"
    )
    serve.set_defaults(command=serve_command)


def label_command(options: argparse.Namespace) -> None:
    from tasks.process import set_quiet_defaults, sleep_when_idle, tune_allocator

    tune_allocator()
    sleep_when_idle()
    set_quiet_defaults()
    from tasks import delivery, label, model_store

    target = delivery.open_target(options.out)
    if isinstance(target, Path):
        label.check_target(target, options.sources)
    with model_store.fetch(options.model, Path()) as model:
        chosen = model.with_score(options.score)
        if isinstance(target, Path):
            labelled = label.label_sources(options.sources, chosen, target, image_rate_hz=options.image_rate)
        else:
            labelled = delivery.label_to_store(options.sources, chosen, target, image_rate_hz=options.image_rate)
    shown = str(target) if isinstance(target, Path) else target.shown
    for line in describe(labelled.summary, shown, unchanged=labelled.unchanged):
        print(line)


def serve_command(options: argparse.Namespace) -> None:
    from tasks.process import set_quiet_defaults, sleep_when_idle

    sleep_when_idle()
    set_quiet_defaults()
    from tasks import model_store
    from tasks.tracking import serving

    with model_store.fetch_files(options.model, Path()) as (version, folder):
        app = serving.make_app(folder, max_bytes=int(options.max_request_mib * 2**20))
        print(f"{version.uri} answers at http://{options.host}:{options.port}/invocations, Ctrl-C ends it", flush=True)
        serving.serve(app, options.host, options.port)


def describe(summary: dict[str, Any], folder: str, *, unchanged: bool) -> list[str]:
    """What a person wants to know of new labels. folder: as a person would name it."""
    lines = [f"unchanged: {folder} holds the labels of these sources by this model"] if unchanged else []
    lines.append(
        f"{summary['images']} images, {summary['annotations']} instances, {summary['tracks']} tracks "
        f"by {summary['model_version']}"
    )
    lines += [f"set aside: {one['source']}: {one['reason']}" for one in summary["set_aside"]]
    names = ["coco.json", *(["ytvis.json"] if summary["clips"] else []), "summary.json"]
    return [*lines, "labels   " + ", ".join(f"{folder.rstrip('/')}/{name}" for name in names)]


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=CHAMPION,
        metavar="MODEL",
        help=f"models:/NAME@ALIAS or models:/NAME/NUMBER of the registry; to label also a folder (default: {CHAMPION})",
    )


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must lie in 0 to 1")
    return value


def _above_zero(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return value
