"""A video file as a stream of timed frames, through PyAV: bounded memory, damaged packets skipped and counted."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from tasks.errors import SourceError
from tasks.picture_codec import MAX_PIXELS

_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mpegvideo,h264,hevc,mjpeg,gif,mxf,nut,rm,ivf,yuv4mpegpipe"
"""Demuxers that a file may choose. Playlists (HLS, concat, DASH) are not among them: they name other files and URLs."""
_scalers = threading.local()


@dataclass
class DecodeCount:
    """Filled while a video is decoded. `frames` decoded, `damaged` packets or frames that were not."""

    frames: int = 0
    damaged: int = 0


@dataclass(frozen=True)
class Probe:
    """What a file says without being decoded. times_us: sorted presentation times of its packets, from 0.

    frames: as many as the container's index claims or its packets number, whichever is more.
    """

    times_us: list[int]
    frames: int
    average_rate: Fraction | None
    codec: str


@dataclass(frozen=True)
class TimedFrame:
    """A decoded picture, not yet converted. time_us: from the first frame of the video."""

    time_us: int
    picture: Any = field(repr=False)


def probe(path: Path, *, max_seconds: float | None) -> Probe:
    """Read all packets and decode none. Raises SourceError where it is no video, or its codec is unknown here."""
    with _open(path) as (container, stream):
        times: list[int] = []
        count = 0
        try:
            for packet in container.demux(stream):
                time = packet.pts if packet.pts is not None else packet.dts
                if packet.size and not packet.is_discard:
                    count += 1
                    if time is not None and packet.time_base is not None:
                        times.append(_to_us(time, packet.time_base))
                if max_seconds is not None and times and times[-1] - times[0] > (max_seconds + 1) * 1e6:
                    break
        except av.error.FFmpegError:
            pass  # the index says how many there should have been; decoding finds out how many there are
        times.sort()
        times_us = [time - times[0] for time in times]
        rate = stream.average_rate or stream.guessed_rate
        frames = max(count, stream.frames)
        if max_seconds is not None:
            frames = sum(time < max_seconds * 1e6 for time in times_us)
        elif not stream.frames and len(container.streams) == 1 and container.duration and rate:
            # Matroska counts no frames; its duration tells whether the end is missing, where no sound can be longer.
            frames = max(count, int(container.duration * rate / av.time_base))
        return Probe(times_us, frames, rate, stream.codec_context.name)


def decode(
    path: Path, count: DecodeCount, *, interval_us: float, max_seconds: float | None = None
) -> Iterator[TimedFrame]:
    """Frames in presentation order with strictly increasing times.

    Where a timestamp is missing, or does not lie after the one before, time goes on by `interval_us`.
    What cannot be decoded is skipped and counted.
    """
    last: int | None = None
    shift = 0
    with _open(path) as (container, stream):
        for frame in _decode_packets(container, stream, count):
            time = _time_us(frame)
            if last is None:
                shift = -time if time is not None else 0
            if time is None:
                time = 0 if last is None else last + round(interval_us) - shift
            if last is not None and time + shift <= last:
                shift = last + max(1, round(interval_us)) - time
            last = time + shift
            if max_seconds is not None and last >= max_seconds * 1e6:
                return
            count.frames += 1
            yield TimedFrame(last, frame)


def to_rgb(picture: Any, *, max_side: int | None) -> np.ndarray:
    """(H, W, 3) uint8 full-range RGB of a decoded frame in any pixel format, upright, no side above `max_side`."""
    width, height = picture.width, picture.height
    longer = max(width, height)
    if max_side is not None and longer > max_side:
        width = max(1, round(width * max_side / longer))
        height = max(1, round(height * max_side / longer))
    converted = _scaler().reformat(
        picture,
        width=width,
        height=height,
        format="rgb24",
        interpolation=Interpolation.AREA if width != picture.width else Interpolation.BICUBIC,
        src_color_range=picture.color_range,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    rgb = converted.to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, k=round(picture.rotation / 90) % 4))


def _scaler() -> VideoReformatter:
    """One for all frames of this thread: it keeps its tables, which each frame's own would compute anew."""
    if not hasattr(_scalers, "one"):
        _scalers.one = VideoReformatter()
    scaler: VideoReformatter = _scalers.one
    return scaler


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first real video stream), with what a hostile file may make FFmpeg do held down."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        # The `file:` prefix keeps a name such as `concat:a|b` or `http:...` from being taken for a protocol.
        container = av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, UnicodeError) as error:
        raise SourceError(_explain_unopenable(path, error)) from None
    with container:
        streams = [s for s in container.streams.video if s.codec_context is None or not _is_cover(s)]
        if not streams:
            raise SourceError("has no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise SourceError("its codec is unknown here: convert it, e.g. `ffmpeg -i IN -c:v libx264 OUT.mp4`")
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise SourceError(f"claims {context.width} x {context.height}, more than {MAX_PIXELS // 10**6} megapixels")
        # A process of a pool has the others beside it; a process alone uses all cores.
        context.thread_count = 1 if multiprocessing.parent_process() is not None else 0
        context.thread_type = "AUTO"
        context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _explain_unopenable(path: Path, error: Exception) -> str:
    try:
        size = path.stat().st_size
    except OSError as gone:
        return f"cannot be read: {gone.strerror}"
    if not size:
        return "is empty (0 bytes): copy or download it again"
    if isinstance(error, PermissionError):
        return "cannot be read: no permission"
    return "is not a video that can be read (broken, cut short, or another kind of file)"


def _decode_packets(container: Any, stream: Any, count: DecodeCount) -> Iterator[Any]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            count.damaged += 1
            packet = None
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.error.DecoderNotFoundError:
            name = stream.codec_context.name
            raise SourceError(f"codec {name} cannot be decoded here: convert it, e.g. to H.264 with ffmpeg") from None
        except av.error.EOFError:
            continue
        except (av.error.FFmpegError, ValueError):
            count.damaged += 1
            continue
        for frame in frames:
            if frame.is_corrupt:
                count.damaged += 1
            else:
                yield frame


def _time_us(frame: Any) -> int | None:
    if frame.pts is None or frame.time_base is None:
        return None
    return _to_us(frame.pts, frame.time_base)


def _to_us(time: int, base: Fraction) -> int:
    """Rounded, in exact arithmetic: a float would drift on long videos with fine time bases."""
    return round(time * base * 1_000_000)
