"""Tiny releases of nuScenes and nuImages in the real format: every table, and every field of the schema.

Tables are plain lists of records, for a test to change before `write`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SIZE = (36, 64)
START_US = 1_532_402_927_612_460
STEPS_US = (0, 50_000, 150_000, 250_000, 300_000, 400_000)
"""A key frame and its five sweeps: real spacing, 50 and 100 ms, six in half a second."""
Table = list[dict[str, Any]]


def token(*parts: object) -> str:
    return hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()


@dataclass
class Miniature:
    root: Path
    version: str
    tables: dict[str, Table]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, scene: str, camera: str) -> Table:
        """The sample_data of one recording, in time."""
        sensor = token("calibrated", camera)
        samples = {
            row["token"]
            for row in self.tables["sample"]
            if row.get("scene_token", row["token"]) in (token("scene", scene), scene)
        }
        return [
            row
            for row in self.tables["sample_data"]
            if row["calibrated_sensor_token"] == sensor and row["sample_token"] in samples
        ]

    def write(self, tables: Sequence[str] | None = None) -> Miniature:
        """Write the tables and the pictures; `tables`: only those."""
        for name, table in self.tables.items():
            if tables is None or name in tables:
                path = self.root / self.version / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(table, indent=0), encoding="utf-8")
        for name, picture in self.pictures.items() if tables is None else ():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
        return self


def make_nuscenes(
    root: Path,
    *,
    scenes: Sequence[str] = ("scene-0061", "scene-0103"),
    cameras: Sequence[str] = ("CAM_FRONT", "CAM_BACK"),
    key_frames: int = 3,
    version: str = "v1.0-mini",
) -> Miniature:
    """Each camera has `key_frames` key frames and five sweeps between two of them, each scene a lidar sweep, too."""
    made = Miniature(root, version, {**_sensors(cameras), **_constant_tables()})
    tables = made.tables
    tables |= {name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "sample_annotation", "instance")}
    for index, scene in enumerate(scenes):
        start_us = START_US + 60_000_000 * index
        samples = [token("sample", scene, number) for number in range(key_frames)]
        tables["scene"].append(
            {
                "token": token("scene", scene),
                "log_token": token("log"),
                "nbr_samples": key_frames,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": scene,
                "description": "Parked truck, construction",
            }
        )
        for number, one in enumerate(samples):
            tables["sample"].append(
                {
                    "token": one,
                    "timestamp": start_us + 500_000 * number + 35_491,
                    "prev": samples[number - 1] if number else "",
                    "next": samples[number + 1] if number + 1 < key_frames else "",
                    "scene_token": token("scene", scene),
                }
            )
        _annotate(tables, scene, samples)
        for shift, camera in enumerate([*cameras, "LIDAR_TOP"]):
            _record(made, scene, camera, samples, start_us + 8_000 * shift)
    return made


def _record(made: Miniature, scene: str, channel: str, samples: list[str], start_us: int) -> None:
    """The chain of one sensor. A sweep belongs to the sample that follows it."""
    steps = STEPS_US if channel != "LIDAR_TOP" else (0,)
    times = [(500_000 * number + step, step == 0) for number in range(len(samples) - 1) for step in steps]
    times.append((500_000 * (len(samples) - 1), True))
    names = [token("data", scene, channel, time) for time, _ in times]
    for index, (time_us, is_key) in enumerate(times):
        owner = samples[-(-time_us // 500_000)]
        name = f"n015-2018-07-24-11-22-45+0800__{channel}__{start_us + time_us}"
        suffix = "jpg" if channel != "LIDAR_TOP" else "pcd.bin"
        made.tables["sample_data"].append(
            {
                "token": names[index],
                "sample_token": owner,
                "ego_pose_token": names[index],
                "calibrated_sensor_token": token("calibrated", channel),
                "timestamp": start_us + time_us,
                "fileformat": suffix.partition(".")[0],
                "is_key_frame": is_key,
                "height": SIZE[0] if suffix == "jpg" else 0,
                "width": SIZE[1] if suffix == "jpg" else 0,
                "filename": f"{'samples' if is_key else 'sweeps'}/{channel}/{name}.{suffix}",
                "prev": names[index - 1] if index else "",
                "next": names[index + 1] if index + 1 < len(names) else "",
            }
        )
        pose = {"rotation": [0.57, -0.0016, 0.0117, -0.82], "translation": [411.4, 1181.2, 0.0]}
        made.tables["ego_pose"].append({"token": names[index], "timestamp": start_us + time_us, **pose})
        if suffix == "jpg":
            made.pictures[made.tables["sample_data"][-1]["filename"]] = _draw(scene + channel, index)


def _draw(seed: str, index: int) -> np.ndarray:
    """A square that moves a pixel a picture over a texture of its own."""
    rng = np.random.default_rng(int(token(seed)[:8], 16))
    picture = cv2.resize(rng.integers(40, 120, (9, 16, 3), np.uint8), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    picture[10:22, 5 + index : 17 + index] = (30, 120, 230)
    return picture


def _sensors(channels: Sequence[str]) -> dict[str, Table]:
    known = [*channels, "LIDAR_TOP"]
    modality = {"LIDAR_TOP": "lidar"}
    sensor = [{"token": token("sensor", c), "channel": c, "modality": modality.get(c, "camera")} for c in known]
    calibrated = [
        {
            "token": token("calibrated", channel),
            "sensor_token": token("sensor", channel),
            "translation": [1.7, 0.016, 1.51],
            "rotation": [0.4998, -0.503, 0.4998, -0.4974],
            "camera_intrinsic": []
            if channel == "LIDAR_TOP"
            else [[50.6, 0.0, 32.6], [0.0, 50.6, 19.6], [0.0, 0.0, 1.0]],
        }
        for channel in known
    ]
    return {"sensor": sensor, "calibrated_sensor": calibrated}


def _constant_tables() -> dict[str, Table]:
    log = {"token": token("log"), "logfile": "n015-2018-07-24-11-22-45+0800", "vehicle": "n015"}
    place = {"date_captured": "2018-07-24", "location": "singapore-onenorth"}
    return {
        "category": [{"token": token("car"), "name": "vehicle.car", "description": "Vehicle for personal use"}],
        "attribute": [{"token": token("moving"), "name": "vehicle.moving", "description": "Vehicle is moving"}],
        "visibility": [{"token": "4", "level": "v80-100", "description": "80-100 % visible"}],
        "log": [log | place],
        "map": [{"token": token("map"), "log_tokens": [token("log")], "category": "semantic_prior", "filename": "m"}],
    }


def _annotate(tables: dict[str, Table], scene: str, samples: list[str]) -> None:
    boxes = [token("box", scene, number) for number in range(len(samples))]
    for number, sample in enumerate(samples):
        tables["sample_annotation"].append(
            {
                "token": boxes[number],
                "sample_token": sample,
                "instance_token": token("instance", scene),
                "visibility_token": "4",
                "attribute_tokens": [token("moving")],
                "translation": [373.2, 1130.4, 1.25],
                "size": [0.6, 0.7, 1.6],
                "rotation": [0.98, 0.0, 0.0, -0.18],
                "prev": boxes[number - 1] if number else "",
                "next": boxes[number + 1] if number + 1 < len(samples) else "",
                "num_lidar_pts": 1,
                "num_radar_pts": 0,
            }
        )
    ends = {"first_annotation_token": boxes[0], "last_annotation_token": boxes[-1]}
    one = {"token": token("instance", scene), "category_token": token("car"), "nbr_annotations": len(boxes)}
    tables["instance"].append(one | ends)


def make_nuimages(root: Path, *, samples: int = 2, version: str = "v1.0-mini") -> Miniature:
    """Samples of CAM_FRONT: a key frame with two objects, three sweeps before and three after it, 500 ms apart."""
    made = Miniature(root, version, _sensors(["CAM_FRONT"]) | _constant_tables())
    tables = made.tables
    del tables["visibility"], tables["map"]
    for one in tables["calibrated_sensor"]:
        one["camera_distortion"] = [-0.36, 0.18, 0.001, 0.0, 0.01, 0.0]
    tables |= {name: [] for name in ("sample", "sample_data", "ego_pose", "object_ann", "surface_ann")}
    for number in range(samples):
        sample = token("sample", number)
        data = [token("data", number, index) for index in range(7)]
        start_us = START_US + 60_000_000 * number
        row = {"token": sample, "timestamp": start_us + 1_500_000, "log_token": token("log")}
        tables["sample"].append(row | {"key_camera_token": data[3]})
        for index, one in enumerate(data):
            time_us = start_us + 500_000 * index
            kind, name = "samples" if index == 3 else "sweeps", f"n003-2018__CAM_FRONT__{time_us}.jpg"
            tables["sample_data"].append(
                {
                    "token": one,
                    "sample_token": sample,
                    "ego_pose_token": one,
                    "calibrated_sensor_token": token("calibrated", "CAM_FRONT"),
                    "filename": f"{kind}/CAM_FRONT/{name}",
                    "fileformat": "jpg",
                    "width": SIZE[1],
                    "height": SIZE[0],
                    "timestamp": time_us,
                    "is_key_frame": index == 3,
                    "prev": data[index - 1] if index else "",
                    "next": data[index + 1] if index < 6 else "",
                }
            )
            made.pictures[tables["sample_data"][-1]["filename"]] = _draw(f"nuimages {number}", index)
            pose = {"rotation": [1.0, 0.0, 0.0, 0.0], "translation": [0.0, 0.0, 0.0], "timestamp": time_us}
            rates = {"rotation_rate": [0.0] * 3, "acceleration": [0.0] * 3, "speed": 5.1}
            tables["ego_pose"].append({"token": one, **pose, **rates})
        for place, box in enumerate([(8, 10, 20, 22), (40, 4, 48, 30)]):
            tables["object_ann"].append(
                {
                    "token": token("object", number, place),
                    "category_token": token("car"),
                    "bbox": list(box),
                    "mask": encode_mask(box_mask(box)),
                    "attribute_tokens": [token("moving")],
                    "sample_data_token": data[3],
                }
            )
        surface = {"token": token("surface", number), "category_token": token("road"), "sample_data_token": data[3]}
        tables["surface_ann"].append(surface | {"mask": encode_mask(box_mask((0, 30, 64, 36)))})
    return made


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """As nuImages has them: the compressed counts as base64."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": base64.b64encode(rle["counts"]).decode()}
