"""The `mosis` command. Prefect and the stages are imported only once arguments and parameters are known to be good."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from flows import model_commands, promotion_commands, service_commands
from tasks.errors import MosisError, ParamsError, SourceError

VIDEO_DEFAULTS = {
    "pairs.height": 128,
    "pairs.width": 224,
    # Learn from all of it and look at all of it: without labels nothing is chosen on held-out video, and videos kept
    # out would only have worse masks.
    "pairs.train_share": 1.0,
    "pairs.val_share": 0.0,
    "evaluate.split": "all",
    "train.iterations": 1600,
    # What moves now and then is labelled now and then, so scores on real video are lower than on the generated.
    "evaluate.score_cut": 0.2,
    "export.score_threshold": 0.2,
}
"""Of a new workspace for one's own video, where they differ from params.yaml. The size is near 16:9, small enough for
two cores."""

_INTERRUPTED, _TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. A MosisError is one line, with its traceback under MOSIS_TRACEBACK=1."""
    options = build_parser().parse_args(arguments)
    # Without a handler SIGTERM would end us with no clean-up: the stage and Prefect's server would live on.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
    except MosisError as error:
        if os.environ.get("MOSIS_TRACEBACK") == "1":
            raise
        print(f"mosis: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nmosis: interrupted; finished stages are kept, run the same command to go on", file=sys.stderr)
        return _INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mosis", description="Unlabelled video in, instance masks and a segmenter out."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="label videos and train on them, in a workspace of their own")
    run.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="videos, folders of videos or of images, fsspec URLs; none: run the workspace we are in",
    )
    run.add_argument(
        "--workspace",
        type=local_folder,
        metavar="DIR",
        help="where to work (default: workspaces/NAME OF THE FIRST SOURCE)",
    )
    run.add_argument(
        "--image-rate", type=float, metavar="HZ", help="rate of folders of images, which carry no timestamps"
    )
    run.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="training size, multiples of 32 (default: 128x224)",
    )
    _add_set(run)
    run.set_defaults(command=run_command)

    init = commands.add_parser("init", help="make a workspace and change nothing else")
    init.add_argument("folder", type=local_folder, metavar="DIR")
    _add_set(init)
    init.set_defaults(command=init_command)

    demo = commands.add_parser("demo", help="run the pipeline of the repository we are in, on generated video")
    demo.set_defaults(command=demo_command)
    status = commands.add_parser("status", help="what the next run would do, and which model is champion")
    place = status.add_mutually_exclusive_group()
    place.add_argument("folder", type=local_folder, nargs="?", metavar="DIR", help="default: the one we are in")
    place.add_argument("--workspace", type=local_folder, metavar="DIR", help="the same")
    status.set_defaults(command=status_command)
    model_commands.add_commands(commands)
    service_commands.add_commands(commands)
    promotion_commands.add_commands(commands)
    return parser


def run_command(options: argparse.Namespace) -> None:
    from tasks import workspace

    settings = read_settings(options)
    if not options.sources:
        folder = options.workspace or Path()
        if options.workspace and "ingest.sources" in settings and not workspace.is_workspace(folder):
            given = settings["ingest.sources"]
            if isinstance(given, list):
                settings["ingest.sources"] = [absolute_source(str(source)) for source in given]
            _make_workspace(folder, {**VIDEO_DEFAULTS, **settings})
        elif settings:
            _require_workspace(folder)
            workspace.configure(folder, settings)
        return run_pipeline(folder)
    sources = [absolute_source(source) for source in options.sources]
    settings = {"ingest.sources": sources, **settings}
    folder = options.workspace or workspace.place_for(sources, Path("workspaces"))
    if workspace.is_workspace(folder):
        if workspace.configure(folder, settings):
            print(f"{folder}: params.yaml changed")
    else:
        _make_workspace(folder, {**VIDEO_DEFAULTS, **settings})
    return run_pipeline(folder)


def _make_workspace(folder: Path, settings: dict[str, Any]) -> None:
    from tasks import workspace

    workspace.init(folder, settings)
    print(f"new workspace {folder}")


def init_command(options: argparse.Namespace) -> None:
    from tasks import workspace

    workspace.init(options.folder, read_settings(options))
    run = f"mosis run --workspace {shlex.quote(str(options.folder))}"
    print(f"new workspace {options.folder}: edit params.yaml, then `{run}`")


def demo_command(options: argparse.Namespace) -> None:
    run_pipeline(Path())


def status_command(options: argparse.Namespace) -> None:
    folder = options.folder or options.workspace or Path()
    _require_workspace(folder)
    from flows import summary

    summary.print_status(folder.resolve())


def run_pipeline(folder: Path) -> None:
    """The pipeline in a workspace, and what came of it. Parameters are read before anything slow starts."""
    from flows import environment, server
    from tasks import params, versioning, workspace

    _require_workspace(folder)
    folder = folder.resolve()
    params.load(folder / "params.yaml")
    versioning.check_files(folder)
    workspace.check_writable(folder)
    environment.prepare(folder)
    wait_for_server = server.start()
    from flows import summary
    from flows.pipeline import pipeline

    wait_for_server()
    summary.print_run(folder, pipeline(folder))


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Dotted keys of params.yaml from --set and its short forms, of which --set has the last word."""
    from tasks.settings import parse_setting

    settings: dict[str, Any] = {}
    if getattr(options, "image_rate", None) is not None:
        settings["ingest.image_rate_hz"] = options.image_rate
    if getattr(options, "size", None) is not None:
        settings["pairs.height"], settings["pairs.width"] = options.size
    settings.update(parse_setting(text) for text in options.set)
    return settings


def absolute_source(source: str) -> str:
    """A local path made absolute, that of KIND:PATH too; URLs and `synthetic` as they are.

    Raises SourceError where no such file exists.
    """
    from tasks.sources import DATASETS

    kind, colon, place = source.partition(":")
    if colon and kind in DATASETS and kind != "library" and place:
        return f"{kind}:{absolute_source(place)}"
    if "://" in source or source == "synthetic" or (colon and kind in DATASETS):
        return source
    path = Path(source).expanduser()
    if not path.exists():
        raise SourceError(f"{source}: no such file or folder: give videos, folders of videos or images, or URLs")
    absolute = str(path.resolve())
    if not _is_utf8(absolute):
        raise SourceError(f"{source!a}: its name is not UTF-8, so params.yaml cannot hold it: rename it")
    return absolute


def _is_utf8(text: str) -> bool:
    """Names that are no UTF-8 come from the operating system with lone surrogates in them."""
    return text.encode(errors="replace").decode() == text


def parse_size(text: str) -> tuple[int, int]:
    """`128x224` -> (128, 224), height first."""
    height, times, width = text.lower().partition("x")
    if not (times and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: write HEIGHTxWIDTH, for example 128x224")
    return int(height), int(width)


def local_folder(text: str) -> Path:
    """A workspace is a git repository, which a URL cannot be."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: a workspace is a folder of this machine; its outputs reach a store by `dvc push` (docs/stores.md)"
        )
    return Path(text)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of params.yaml, such as train.iterations=200; may be repeated",
    )


def _require_workspace(folder: Path) -> None:
    from tasks import workspace

    if not workspace.is_workspace(folder):
        raise ParamsError(
            f"{folder.resolve()} is no workspace: name videos (`mosis run SOURCE ...`), "
            "give --workspace DIR, or make one with `mosis init DIR`"
        )


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(_TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
