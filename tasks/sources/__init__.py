"""Sources: a URL -> jobs -> clip archives. A new source is one module here and one line in `open_source`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

# For types alone: the synthetic source generates video where only numpy and cv2 exist.
if TYPE_CHECKING:
    from tasks.clips import ClipEntry
    from tasks.params import IngestParams


class Job(Protocol):
    """One source file (or folder of images, or generated video) to ingest. Picklable: it runs in another process."""

    @property
    def source(self) -> str:
        """What messages and clips call it: a path or URL without credentials."""

    def run(self, folder: Path) -> list[ClipEntry]:
        """Write the clips of this source into `folder` with ClipWriter. Raises SourceError with a one-line reason."""


def open_source(url: str, params: IngestParams) -> list[Job]:
    """List what there is at `url` without decoding any of it. Raises SourceError where there is nothing."""
    if url == "synthetic":
        from tasks.sources.synthetic import open_synthetic

        return list(open_synthetic(params))
    from tasks.sources.video import open_video

    return list(open_video(url, params))
