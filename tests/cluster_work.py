"""What workers of a cluster do in tests; light, since every worker imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def tell(item: tuple[str, int]) -> int:
    """Note that item `number` was begun, then: 1 ends its process the first time, 2 always,
    3 fails, others give their square."""
    folder, number = item
    told = Path(folder, f"{number}-{time.monotonic_ns()}")
    first = not any(name.startswith(f"{number}-") for name in os.listdir(folder))
    told.touch()
    if number == 1 and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise ValueError("three")
    return number * number
