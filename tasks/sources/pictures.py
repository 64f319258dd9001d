"""A folder of pictures as a video: natural order, the rate that the user states, original bytes wherever they serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.clips import ClipEntry
from tasks.errors import SourceError
from tasks.params import IngestParams
from tasks.sources.places import Place
from tasks.sources.sequences import SequenceJob, TimedPicture

STATE_RATE = (
    "a folder of images carries no timestamps: state its rate with `--image-rate 24` "
    "(ingest.image_rate_hz in params.yaml)"
)


@dataclass(frozen=True)
class PicturesJob:
    """All pictures of one folder as one video."""

    source: str
    places: tuple[Place, ...]
    params: IngestParams

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError where no rate is stated, and what SequenceJob raises."""
        rate_hz = self.params.image_rate_hz
        if rate_hz is None:
            raise SourceError(STATE_RATE)
        pictures = tuple(TimedPicture(round(i * 1e6 / rate_hz), place, i) for i, place in enumerate(self.places))
        shape = {"kind": "pictures", "image_rate_hz": rate_hz}
        return SequenceJob(self.source, pictures, self.params, rate_hz, shape).run(folder)
