"""Which of several processes that train one model this one is. Light: read before anything of torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import ParamsError

STORE = "MOSIS_RANKS_FILE"
"""The file through which processes find each other that this project started itself, see launch.py."""


@dataclass(frozen=True)
class Rank:
    """number: 0 to count - 1, over all machines. local: the same on this machine alone, which is its GPU's number.

    store: the file through which they find each other; None under torchrun, which tells them an address.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    store: Path | None = None

    @property
    def holds_workspace(self) -> bool:
        """Whether it is this process that must lock the workspace: who started the others has, where that was us."""
        return self.number == 0 and self.store is None


def read_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """What torchrun, or `launch`, tells its processes. Raises ParamsError where that makes no sense."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Rank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        number, count, local = (int(environment.get(name, "0")) for name in names)
    except ValueError:
        number, count, local = -1, 0, 0
    if not 0 <= number < count or local < 0:
        given = ", ".join(f"{name}={environment.get(name, '')}" for name in names)
        raise ParamsError(f"{given} in the environment make no sense: start with torchrun, or unset them")
    store = environment.get(STORE)
    return Rank(number, count, local, Path(store) if store else None)
