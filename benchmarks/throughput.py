"""What an hour of video costs, in processor time and bytes: `python -m benchmarks.throughput`.

Rows `video WxH`: frames per second of processor time that ingest, pairs and labelling take of generated H.264 at that
size, and the bytes that an hour of it leaves. `store`: DVC's add and push of 1,000 archives. `library N`: what one more
video costs git and DVC beside N that are done. `new video`: a run of the flow over tiny videos, everything counted but
the servers of others. Processor time is that of all processes together; a busy machine lengthens it, too, by several
times. docs/scaling.md makes hours and machines of it. Needs the whole package; labels are those of untrained weights.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from benchmarks.decode import clock
from benchmarks.growth import make_workspace, measure_library, measure_new_video, size
from benchmarks.harness import Report, Row, Setting, add_options, cache_folder, format_table, start
from tasks import pairs, versioning
from tasks.clips import ClipEntry, write_manifest
from tasks.params import PairsParams, Params
from tasks.sources.places import Place
from tasks.sources.video import VideoJob

RATE_HZ = 24


@dataclass(frozen=True)
class Plan:
    row: str
    frames: int
    rounds: int
    archives: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["640x360", "1280x720", "1920x1080"], metavar="WxH")
    parser.add_argument("--frames", type=int, default=240, help="of each video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--videos", type=int, nargs="*", default=[200, 2_000, 20_000], help="in the library already")
    parser.add_argument("--new", type=int, default=10, help="videos for the flow")
    parser.add_argument("--archives", type=int, default=1000, help="for DVC")
    add_options(parser)
    options = parser.parse_args()
    report = Report("throughput", options)
    names = [*(f"video {size}" for size in options.sizes), *([f"new video {options.new}"] if options.new else [])]
    names += ["store", *(f"library {count}" for count in options.videos)]
    with cache_folder(options) as cache:
        plans = [Plan(name, options.frames, options.rounds, options.archives) for name in names]
        report.run(measure, plans, cache)
    lines = [[row["row"], ", ".join(f"{k} {_short(v)}" for k, v in row.items() if k != "row")] for row in report.rows]
    report.finish(format_table(("what", "figures"), lines), load_average=os.getloadavg())


def measure(plan: Plan, setting: Setting) -> Row:
    kinds: dict[str, Callable[[Plan, Path], Row]] = {
        "video": measure_video,
        "store": measure_store,
        "library": lambda plan, folder: measure_library(int(plan.row.split()[1]), plan.rounds, folder),
        "new": lambda plan, folder: measure_new_video(int(plan.row.split()[2]), folder),
    }
    with tempfile.TemporaryDirectory(dir=setting.cache) as folder, home(Path(folder) / "home"):
        return kinds[plan.row.split()[0]](plan, Path(folder))


def home(folder: Path) -> Any:
    """A home of its own, where the default DVC remote of a workspace lies, and no server but ours."""
    from unittest import mock

    folder.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return mock.patch.dict(os.environ, {**own, "HOME": str(folder)}, clear=True)


def measure_video(plan: Plan, folder: Path) -> Row:
    """Least processor seconds of the rounds. bytes: of an hour, each as it lies on the disk."""
    width, height = map(int, plan.row.split()[1].split("x"))
    source = generate(folder / "video.mp4", plan.frames, width, height)
    params = Params(pairs=PairsParams(width=224, workers=1))
    model = untrained_model(folder / "model")
    seconds: dict[str, list[float]] = {"ingest": [], "pairs": [], "label": []}
    hour = RATE_HZ * 3600 / plan.frames
    clips = folder / "data" / "clips"
    clips.mkdir(parents=True)

    def ingest() -> list[ClipEntry]:
        entries = VideoJob("video", Place("video", str(source)), params.ingest).run(clips)
        write_manifest(clips, entries)
        return entries

    for _ in range(plan.rounds):
        ingested = clock(ingest)
        seconds["ingest"].append(ingested.cpu_s)
        seconds["pairs"].append(clock(lambda: pairs.run(params, folder)).cpu_s)
        labelled = clock(partial(label, ingested.value, model, folder / "labels"))
        seconds["label"].append(labelled.cpu_s)
    places = {"source": source, "clips": clips, "pairs": folder / "data" / "pairs", "labels": folder / "labels"}
    return {
        "frames": plan.frames,
        "instances_per_frame": labelled.value["annotations"] / plan.frames,
        **{f"{name}_frames_per_cpu_s": plan.frames / min(taken) for name, taken in seconds.items()},
        **{f"{name}_gb_per_hour": size(place) * hour / 1e9 for name, place in places.items()},
        "rounds": seconds,
    }


def label(entries: Any, model: Any, folder: Path) -> Any:
    from tasks import label

    return label.label_clips(entries, model, folder)


def generate(path: Path, frames: int, width: int, height: int) -> Path:
    """H.264, 24 Hz: smooth noise that moves, with ten bright squares that move over it."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 160, (height // 8, width // 8, 3), np.uint8)
    ground = cv2.resize(noise, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    side = height // 8
    places = rng.integers(0, (height - side, width - side), (10, 2))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE_HZ)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            frame: Any = ground[index % height : index % height + height, index % width : index % width + width].copy()
            for number, (top, left) in enumerate(places):
                top, left = (top + index * (number % 3)) % (height - side), (left + 2 * index) % (width - side)
                frame[top : top + side, left : left + side] = (250, 25 * number, 120)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def untrained_model(folder: Path) -> Any:
    """Of the preset `small` at 128 x 224: the time of the network, and the masks of an untrained one."""
    import safetensors.torch
    import torch
    import yaml

    import models
    from tasks import model_store
    from tasks import params as parameters

    params = parameters.parse({"train": {"mosis": {"preset": "small"}}})
    torch.manual_seed(0)
    folder.mkdir()
    network = models.METHODS["mosis"](params.train.mosis, (128, 224))
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    document = {"format": 1, "method": "mosis", "size": [128, 224], "params": parameters.to_dict(params)}
    (folder / "params.resolved.yaml").write_text(yaml.safe_dump(document))
    return model_store.load_folder(folder, "cpu")


def measure_store(plan: Plan, folder: Path) -> Row:
    """Processor seconds of `dvc add` and push to a folder, of archives of 100 kB."""
    workspace = make_workspace(folder)
    rng = np.random.default_rng(0)
    (workspace / "clips").mkdir()
    for number in range(plan.archives):
        (workspace / "clips" / f"{number:016x}.zip").write_bytes(rng.bytes(100_000))
    added = clock(lambda: versioning.add(workspace, "clips"))
    pushed = clock(lambda: versioning.push_target(workspace, "clips.dvc"))
    return {"archives": plan.archives, "add_cpu_s": added.cpu_s, "push_cpu_s": pushed.cpu_s}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else ("..." if isinstance(value, dict) else str(value))


if __name__ == "__main__":
    start(main)
