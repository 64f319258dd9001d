"""Sources: a URL -> jobs -> clip archives. A new source is one module here and one line in `DATASETS`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tasks.errors import SourceError

# For types alone: the synthetic source generates video where only numpy and cv2 exist.
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tasks.clips import ClipEntry
    from tasks.params import IngestParams

DATASETS: dict[str, str] = {
    "davis": "davis",
    "library": "library",
    "nuscenes": "nuscenes",
    "youtube_vis": "youtube_vis",
}
"""KIND of `KIND:URL` -> the module here whose `open_KIND(url, params)` lists its jobs."""


class Job(Protocol):
    """One source file (or folder of images, or generated video) to ingest. Picklable: it runs in another process."""

    @property
    def source(self) -> str:
        """What messages and clips call it: a path or URL without credentials."""

    def run(self, folder: Path) -> list[ClipEntry]:
        """Write the clips of this source into `folder` with ClipWriter. Raises SourceError with a one-line reason."""


def open_source(url: str, params: IngestParams) -> list[Job]:
    """List what there is at `url` without decoding any of it. Raises SourceError where there is nothing."""
    from tasks.sources.places import hide_credentials, is_local, refuse_credentials

    if url == "synthetic":
        from tasks.sources.synthetic import open_synthetic

        return list(open_synthetic(params))
    kind, _, place = url.partition(":")
    refuse_credentials(place if kind in DATASETS else url)
    if kind in DATASETS:
        if not place:
            raise SourceError(f"{url}: say where it lies: {kind}:PATH or {kind}:URL (ingest.sources)")
        if is_local(place) and Path(place).is_file() and not (kind == "youtube_vis" and place.endswith(".json")):
            raise SourceError(
                f"{kind}:{hide_credentials(place)}: is a file: give the folder that is the dataset's root, unpacked "
                "(ingest.sources)"
            )
        opener: Callable[[str, IngestParams], Sequence[Job]]
        opener = getattr(import_module(f"tasks.sources.{DATASETS[kind]}"), f"open_{kind}")
        return list(opener(place, params))
    from tasks.sources.video import open_video

    return list(open_video(url, params))
