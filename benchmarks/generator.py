"""The thesis' generator on machines without pydantic; runs with numpy and cv2."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

GENERATOR: dict[str, Any] = {
    "videos": 24, "frames": 120, "height": 128, "width": 128, "rate_hz": 24.0, "seed": 0,
    "shapes": ("circle", "square", "triangle", "pentagon", "hexagon", "star"), "objects": (1, 5), "radius": (9.0, 22.0),
    "speed": (0.8, 3.5), "background_path": "mixed", "background_zoom": (1.2, 2.0), "pictures": None,
    "dense_flow": False, "rotation_deg": 0.0, "scaling": 0.0, "deformation": 0.0, "occlusion_order": False,
    "standing_still": 0.0, "lighting": 0.0, "camera_shake": 0.0, "camera_zoom": 0.0, "texture_contrast": 1.0,
}  # fmt: skip
"""SyntheticParams' defaults (but for dense_flow, which no row reads), for machines without pydantic."""


def generator_settings(seed: int, **changes: Any) -> Any:
    """SyntheticParams as the generator reads them. Raises ValueError for a setting that it does not have."""
    unknown = sorted(set(changes) - set(GENERATOR))
    if unknown:
        raise ValueError(f"the generator has no setting {', '.join(unknown)}: known are {', '.join(sorted(GENERATOR))}")
    return SimpleNamespace(**(GENERATOR | changes | {"seed": seed}))
