"""`mosis notify`: tell the service that a video has arrived. Plain HTTP, as Prefect takes seconds to import."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.errors import StorageError

ARRIVED = "mosis.video.arrived"
"""The event that starts the new-video flow. It carries nothing that the flow reads: the flow looks for itself."""
GROWN = "mosis.library.grown"
"""The event that starts the retrain flow: enough new video for a training. It carries nothing either."""
DRIFTED = "mosis.drift"
"""The event that says that new video is unlike what the champion was trained on. payload: figures and limits."""
_TIMEOUT_S = 30.0


def resource_id(workspace: Path) -> str:
    """By which Prefect knows a workspace."""
    return f"mosis.workspace.{hashlib.sha256(str(workspace.resolve()).encode(errors='replace')).hexdigest()[:16]}"


def emit_arrival(api_url: str, workspace: Path, shown: str) -> None:
    """Tell the server at `api_url` that `shown`, a name for people, has arrived. Raises StorageError."""
    emit(api_url, workspace, ARRIVED, {"source": shown})


def emit(api_url: str, workspace: Path, event: str, payload: Mapping[str, Any], *, identity: str | None = None) -> None:
    """Send the server an event about the workspace. identity: what sent twice is one event. Raises StorageError."""
    number = uuid.uuid4() if identity is None else uuid.uuid5(uuid.NAMESPACE_URL, f"{event} {identity}")
    document = {
        "id": str(number),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": resource_id(workspace)},
        "payload": dict(payload),
    }
    request = urllib.request.Request(
        f"{api_url}/events", data=json.dumps([document]).encode(), headers={"Content-Type": "application/json"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=_TIMEOUT_S):
            return
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise StorageError(f"the service at {api_url} does not answer ({reason}): `mosis up` starts it again") from None
