"""Numbers and names as people write them. Anything unexpected is shown as it is, never a reason to fail."""

from __future__ import annotations

import math
from typing import Any


def figure(value: Any) -> str:
    """Three digits that matter; a dash where there is nothing to say."""
    if not _is_number(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def count(value: Any) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,.0f}" if _is_number(value) else figure(value)


def share(value: Any) -> str:
    """0.043 -> 4.3 %."""
    return f"{100 * value:.1f} %" if _is_number(value) else figure(value)


def duration(value: Any) -> str:
    """Seconds as hours, minutes and seconds, the two that matter."""
    if not _is_number(value):
        return figure(value)
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def words(name: str) -> str:
    """mask_AP50 -> mask AP50."""
    return str(name).replace("_", " ").strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
