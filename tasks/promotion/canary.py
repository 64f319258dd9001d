"""The canary: generated video with truth that nothing is trained or tuned on, the same for all versions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from tasks.clips import ClipEntry, ClipReader, open_clips, write_manifest
from tasks.errors import DataError
from tasks.files import atomic_folder
from tasks.params import IngestParams
from tasks.sources import open_source
from tasks.sources.params import SyntheticParams
from tasks.sources.synthetic.jobs import GENERATOR

FOLDER = Path(".mosis", "canary")
VIDEOS = SyntheticParams(
    # Many videos of few frames: frames of one video are nearly alike, and say little that the first did not.
    videos=40,
    frames=4,
    # No benchmark, test or demo comes near this seed.
    seed=577_215_664_901,
    rotation_deg=2.0,
    deformation=0.1,
    lighting=0.1,
    dense_flow=False,
)


def canary_id(videos: SyntheticParams | None = None) -> str:
    """Of the pixels: the same for the same settings and generator."""
    text = json.dumps([asdict(videos or VIDEOS), GENERATOR], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_canary(workspace: Path) -> list[ClipEntry]:
    """The canary's clips, every frame of which can be read; made where they are not there or not so: what cannot be
    read later on is then the version's fault. Raises StorageError.
    """
    folder = workspace / FOLDER / canary_id()
    try:
        entries = open_clips(folder)
        for entry in entries:
            with ClipReader(entry.path) as reader:
                for index, _ in enumerate(reader.frames()):
                    reader.truth(index)
        return entries
    except DataError:
        pass
    params = IngestParams(synthetic=VIDEOS)
    with atomic_folder(folder) as temporary:
        entries = [entry for job in open_source("synthetic", params) for entry in job.run(temporary)]
        write_manifest(temporary, entries)
    return open_clips(folder)
