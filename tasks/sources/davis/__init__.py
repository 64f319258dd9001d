"""`davis:URL`: datasets of folders of frames with a folder of masks beside them, DAVIS and those laid out alike.

docs/datasets.md says what is read of each and what its numbers mean.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.errors import SourceError
from tasks.params import IngestParams
from tasks.sources import Job
from tasks.sources.davis.layouts import Layout, Unusable, gather, last_number, list_dataset
from tasks.sources.davis.selection import Selected, read_groups, select
from tasks.sources.davis.truth import FolderTruth
from tasks.sources.params import DavisParams
from tasks.sources.places import hide_credentials
from tasks.sources.sequences import SequenceJob, TimedPicture

__all__ = ["open_davis"]


def open_davis(url: str, params: IngestParams) -> list[Job]:
    """One job for each sequence, and one that fails for each thing that is set aside. The URL is listed once.

    Raises SourceError, in one line, where no layout is recognised or more than one, where the rate has to be stated,
    and where the settings name a split, a sequence or a file that is not there.
    """
    settings, shown = params.davis, hide_credentials(url)
    listing = list_dataset(url)
    unusable: list[Unusable] = list(listing.unusable)
    sequences = gather(listing, settings, shown)
    rate_hz = settings.rate_hz or sequences.layout.rate_hz
    if rate_hz is None:
        raise SourceError(
            f"{shown}: frames in the layout {sequences.layout.name} carry no times, and no rate is published: "
            "state it (ingest.davis.rate_hz)"
        )
    chosen = select(sequences, listing, settings, shown, unusable)
    groups = read_groups(settings.motion_groups, sequences, unusable)
    jobs: list[Job] = [
        _make_job(one, sequences.layout, groups.get(one.folders.name, ()), rate_hz, params) for one in chosen
    ]
    return jobs + unusable


def _make_job(
    chosen: Selected, layout: Layout, groups: tuple[tuple[int, ...], ...], rate_hz: float, params: IngestParams
) -> SequenceJob:
    folders, settings = chosen.folders, params.davis
    numbers, stems = zip(*_number_frames(list(folders.frames)), strict=True)
    pictures = tuple(
        TimedPicture(round((number - numbers[0]) * 1e6 / rate_hz), folders.frames[stem], index)
        for index, (number, stem) in enumerate(zip(numbers, stems, strict=True))
    )
    files = folders.masks_by_frame(stems)
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    return SequenceJob(
        source=pictures[0].place.shown.rpartition("/")[0],
        pictures=pictures,
        params=params,
        rate_hz=rate_hz / (statistics.median(steps) if steps else 1),
        shape=_shape(settings, rate_hz),
        min_rate_hz=settings.min_rate_hz,
        truth=FolderTruth(files, layout.meaning, merge=settings.merge, groups=groups) if files else None,
        split=chosen.split,
    )


def _number_frames(stems: Sequence[str]) -> list[tuple[int, str]]:
    """(number, name) in order: the number in the name; where those do not tell the frames apart, the place."""
    numbers = [last_number(stem) for stem in stems]
    known = [number for number in numbers if number is not None]
    if len(set(known)) < len(stems):
        return list(enumerate(stems))
    return sorted(zip(known, stems, strict=True))


def _shape(settings: DavisParams, rate_hz: float) -> Mapping[str, Any]:
    """min_rate_hz stands there where this source accepts a rate of its own, for the pairs stage to accept it, too."""
    own = {} if settings.min_rate_hz is None else {"min_rate_hz": settings.min_rate_hz}
    return {"kind": "davis", "frames_hz": rate_hz, **own}
