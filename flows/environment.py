"""Where Prefect keeps its things and what it may print: set before Prefect is imported, which reads it once."""

from __future__ import annotations

import os
from pathlib import Path

_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # The console shows the stages' own bars and our lines; the log itself goes to the server, for its UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def prepare(workspace: Path) -> None:
    """Set Prefect's environment for a run in `workspace`; what the caller's environment says already is kept.

    The local server (flows.server) keeps its database in the workspace.
    """
    for name, value in {"PREFECT_HOME": str(workspace / ".prefect"), **_QUIET}.items():
        os.environ.setdefault(name, value)
