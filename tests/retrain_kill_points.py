"""A retraining that kills itself at a named point: python -m tests.retrain_kill_points WORKSPACE POINT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.kill_points import kill

POINTS = ("after the challenger is registered", "between the way back and the alias", "before MLflow's run ends")


def arm(point: str) -> None:
    from mlflow import MlflowClient

    from tasks.tracking import Tracker

    move = MlflowClient.set_registered_model_alias

    def kill_at_champion(client: Any, name: str, alias: str, version: str) -> None:
        kill() if alias == "champion" else move(client, name, alias, version)

    if point == POINTS[1]:
        MlflowClient.set_registered_model_alias = kill_at_champion
    elif point == POINTS[2]:
        Tracker.finish = kill  # type: ignore[method-assign]


def main(workspace: Path, sources: Path, point: str) -> None:
    """The steps of flows/retrain.py around that point."""
    from tasks import registry, tracking
    from tasks.promotion import trial

    registry.SOURCES = sources
    arm(point)
    if point == POINTS[0]:
        tracking.register(workspace, alias="challenger")
        kill()
    trial.carry_out_pending(workspace)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
