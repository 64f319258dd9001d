"""The short look at a picture of a sequence: the verdict and the header of the long one, whatever is damaged."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks import picture_codec
from tasks.errors import DataError
from tasks.sources.checking import SequenceChecker


def encode(kind: str = "JPEG", seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pictures() -> list[bytes]:
    options: list[dict[str, Any]] = [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}]
    return [encode(**one) for one in options] + [encode(mode="L"), encode(mode="CMYK"), encode("PNG"), encode("BMP")]


def judge(check: Any, data: bytes) -> Any:
    try:
        return check(data, where="x")
    except DataError as error:
        return str(error)


def damage(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    if draw.random() < 0.5:
        del changed[draw.randrange(len(changed)) :]
        changed += draw.choice((b"", b"\xff\xd9"))
    for _ in range(draw.choice((0, 1, 3)) if changed else 0):
        changed[draw.randrange(len(changed))] = draw.choice((draw.randrange(256), 255))
    return bytes(changed)


def test_the_verdict_is_that_of_decoding() -> None:
    checker, draw = SequenceChecker(), random.Random(0)
    whole = pictures()
    for data in whole:
        checker.read_header(data, where="x")
        checker.check_whole(data, where="x")
    refused = 0
    for _ in range(1500):
        data = damage(draw.choice(whole), draw)
        expected = judge(picture_codec.check_whole, data)
        assert judge(checker.check_whole, data) == expected
        assert judge(checker.read_header, data) == judge(picture_codec.read_header, data)
        refused += expected is not None
    assert 300 < refused < 1200


def test_a_sequence_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = picture_codec.check_whole
    monkeypatch.setattr(picture_codec, "check_whole", lambda data, *, where: decoded.append(where))
    checker = SequenceChecker()
    comment = {"comment": b"\xff\xda of another time"}
    for number, options in enumerate(({}, {}, comment, {"quality": 50}, {"subsampling": 0}, {})):
        checker.check_whole(encode(seed=number, **options), where=str(number))
    assert decoded == ["0", "3", "4"]
    monkeypatch.setattr(picture_codec, "check_whole", original)
    with pytest.raises(DataError, match="x: the picture is cut short"):
        checker.check_whole(encode(seed=9)[:-2], where="x")


def test_headers_that_differ_are_told_apart() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    checker = SequenceChecker()
    for options in ({}, {"exif": turned}, {}, {"mode": "L"}):
        data = encode(**options)
        assert checker.read_header(data, where="x") == picture_codec.read_header(data, where="x")


def test_no_bytes() -> None:
    with pytest.raises(DataError, match="not a picture"):
        SequenceChecker().check_whole(b"", where="x")
