"""The tables of nuScenes and nuImages: which pictures each camera took in each scene.

Schemas: docs/schema_nuscenes.md and docs/schema_nuimages.md of nutonomy/nuscenes-devkit.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.errors import DataError, SourceError
from tasks.sources.nuscenes.pictures import MAX_NAME, Picture, show, to_picture
from tasks.sources.nuscenes.release import Release

MAX_PICTURES = 5_000_000


@dataclass
class Recording:
    """One camera in one scene, in the order of the table. fault: the first reason why it cannot be used, or None."""

    scene: str
    camera: str
    pictures: list[Picture] = field(default_factory=list)
    fault: str | None = None


def read_recordings(
    release: Release,
    *,
    cameras: Sequence[str] | Literal["all"],
    scenes: Sequence[str] | None,
    is_nuimages: bool,
) -> tuple[list[Recording], str | None]:
    """(the recordings of the selected scenes and cameras, scene by scene; what is wrong with records of no scene).

    A scene of nuImages is a sample: a key frame and what was taken around it. Memory grows with what is selected.
    Raises DataError where a table as a whole cannot be used, SourceError where a selected name is in none.
    """
    wanted, channels = _read_cameras(release, cameras)
    known = _read_samples_as_scenes(release, scenes) if is_nuimages else _read_scenes(release, scenes)
    found: dict[tuple[int, str], Recording] = {}
    if not is_nuimages:  # there, a sample has the pictures of one camera
        numbered = enumerate(known.names)
        found = {(scene, camera): Recording(name, camera) for scene, name in numbered for camera in wanted}
    kept = 0
    for record in release.read("sample_data", "token", "sample_token", "calibrated_sensor_token"):
        channel = channels.get(record["calibrated_sensor_token"])
        if channel == "":
            continue
        scene = known.owners.get(record["sample_token"])
        if scene is None:
            known.note_stray(f"{_name(record)}: its sample {show(record['sample_token'])} is in no table")
        elif scene >= 0 and channel is None:
            reason = f"its calibrated_sensor {show(record['calibrated_sensor_token'])} is in no table"
            known.faults.setdefault(scene, f"{_name(record)}: {reason}")
        elif scene >= 0 and channel is not None:
            _add(found.setdefault((scene, channel), Recording(known.names[scene], channel)), record)
            kept += 1
        if kept > MAX_PICTURES:
            raise SourceError(f"{release.shown}: more than {MAX_PICTURES} pictures: select scenes or cameras")
    for (scene, camera), recording in found.items():
        if not recording.pictures:
            recording.fault = recording.fault or f"sample_data has no picture of {camera} in this scene"
        recording.fault = known.faults.get(scene, recording.fault)
    return [found[key] for key in sorted(found)], known.describe_strays()


@dataclass
class _Scenes:
    """names: of those that are selected. owners: sample token -> index of its scene, -1 where that is not selected.
    faults: index -> reason. stray: what is wrong with the first of `strays` records that belong to no scene.
    """

    names: list[str] = field(default_factory=list)
    owners: dict[str, int] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    stray: str | None = None
    strays: int = 0

    def note_stray(self, reason: str) -> None:
        self.stray = self.stray or reason
        self.strays += 1

    def describe_strays(self) -> str | None:
        return self.stray if self.strays < 2 else f"{self.stray} (and {self.strays - 1} more such records)"


def _read_cameras(
    release: Release, selected: Sequence[str] | Literal["all"]
) -> tuple[Sequence[str], dict[str, str | None]]:
    """(channels of the selected cameras, calibrated_sensor token -> channel).

    That is "" for another sensor, None where sensor.json does not know it.
    """
    sensors: dict[str, tuple[str, bool]] = {}
    for record in release.read("sensor", "token", "channel", "modality"):
        if len(record["channel"]) > MAX_NAME:
            raise DataError(f"{release.shown}/sensor.json: {show(record['channel'])} is no channel")
        _put(sensors, record["token"], (record["channel"], record["modality"] == "camera"), f"{release.shown}/sensor")
    known = sorted({channel for channel, is_camera in sensors.values() if is_camera})
    wanted = known if selected == "all" else selected
    for name in wanted:
        if name not in known:
            raise SourceError(f"ingest.nuscenes.cameras: no camera {name} in {release.shown}, {_suggest(name, known)}")
    channels: dict[str, str | None] = {}
    for record in release.read("calibrated_sensor", "token", "sensor_token"):
        channel, is_camera = sensors.get(record["sensor_token"], (None, False))
        if channel is not None and not (is_camera and channel in wanted):
            channel = ""
        _put(channels, record["token"], channel, f"{release.shown}/calibrated_sensor")
    return wanted, channels


def _read_scenes(release: Release, wanted: Sequence[str] | None) -> _Scenes:
    scenes = _Scenes()
    tokens: dict[str, int] = {}
    ends: list[tuple[str, str]] = []
    names: set[str] = set()
    for record in release.read("scene", "token", "name", "first_sample_token", "last_sample_token"):
        name = record["name"]
        if name in names or len(name) > MAX_NAME:
            raise DataError(f"{release.shown}/scene.json: the name {show(name)} stands twice, or is too long")
        names.add(name)
        chosen = wanted is None or name in wanted
        _put(tokens, record["token"], len(scenes.names) if chosen else -1, f"{release.shown}/scene")
        if chosen:
            scenes.names.append(name)
            ends.append((record["first_sample_token"], record["last_sample_token"]))
    _check_known(wanted, names, release)
    _read_samples(release, tokens, scenes)
    for scene, pair in enumerate(ends):
        for token in pair:
            if scenes.owners.get(token) != scene:
                scenes.faults.setdefault(scene, f"its first or last sample {show(token)} is none of its samples")
    return scenes


def _read_samples(release: Release, tokens: dict[str, int], scenes: _Scenes) -> None:
    """tokens: of scenes -> index, -1 where it is not selected."""
    for record in release.read("sample", "token", "scene_token"):
        token, scene = record["token"], tokens.get(record["scene_token"])
        if scene is None:
            scenes.note_stray(f"sample {show(token)}: its scene {show(record['scene_token'])} is in no table")
            scene = -1
        if token in scenes.owners:
            for one in (scene, scenes.owners[token]):
                scenes.faults.setdefault(one, f"sample {show(token)} stands twice")
        scenes.owners[token] = scene


def _read_samples_as_scenes(release: Release, wanted: Sequence[str] | None) -> _Scenes:
    scenes = _Scenes()
    for record in release.read("sample", "token"):
        token = record["token"]
        chosen = wanted is None or token in wanted
        _put(scenes.owners, token, len(scenes.names) if chosen else -1, f"{release.shown}/sample")
        if chosen:
            scenes.names.append(token)
    _check_known(wanted, scenes.owners, release)
    return scenes


def _check_known(wanted: Sequence[str] | None, known: Collection[str], release: Release) -> None:
    for name in wanted or ():
        if name not in known:
            raise SourceError(f"ingest.nuscenes.scenes: no scene {name} in {release.shown}, {_suggest(name, known)}")


def _add(recording: Recording, record: dict[str, Any]) -> None:
    try:
        recording.pictures.append(to_picture(record))
    except DataError as error:
        recording.fault = recording.fault or f"{_name(record)}: {error}"


def _name(record: dict[str, Any]) -> str:
    return f"sample_data {show(record['token'])}"


def _put(table: dict[str, Any], token: str, value: Any, where: str) -> None:
    if token in table:
        raise DataError(f"{where}.json: the token {show(token)} stands twice")
    table[token] = value


def _suggest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return (
        f"did you mean {show(close[0])}?"
        if close
        else f"which has {', '.join(map(show, sorted(known)[:12])) or 'none'}"
    )
