"""Where Prefect keeps its things and what it may print: set before Prefect is imported, which reads it once."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tasks.errors import ParamsError

_VARIABLE = re.compile(r"\$\{(\w+)\}")
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


def service(workspace: Path, url: str) -> dict[str, str]:
    """What all processes of `mosis up` have, and the command itself that registers deployments with them."""
    return {
        "PREFECT_HOME": str(workspace / ".mosis" / "service" / "prefect"),
        "PREFECT_API_URL": f"{url}/api",
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"])),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_CLI_PROMPT": "false",
    }


def server(url: str, database: str | None) -> dict[str, str]:
    """Of Prefect's server. database: postgresql://..., None for sqlite in PREFECT_HOME."""
    variables = {
        # Any web page could call a server on loopback otherwise, and have it run code.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    if database is not None:
        address, _, query = database.partition("://")[2].partition("?")
        # asyncpg calls it otherwise than libpq, and SQLAlchemy hands on what it is given.
        query = query.replace("sslmode=", "ssl=")
        variables["PREFECT_API_DATABASE_CONNECTION_URL"] = f"postgresql+asyncpg://{address}{query and '?'}{query}"
    return variables


def worker() -> dict[str, str]:
    """Of the worker and the runs that it starts: seen to be alive, and often looking for work: the server is near."""
    return {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "PREFECT_LOGGING_LEVEL": "INFO",
    }


def fill_in_database(text: str) -> str:
    """--database with the environment's values in place of ${NAME}: other users can read a command line.

    Raises ParamsError where one is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ParamsError(f"--database: ${{{found[1]}}} is not set: set {found[1]} in the environment")
        return os.environ[found[1]]

    return _VARIABLE.sub(value, text)


def check_database(url: str) -> None:
    """Raises ParamsError unless `url` is one of PostgreSQL and what talks to it is installed; never quotes it."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("postgresql", "postgres") and bool(parts.hostname) and len(parts.path) > 1
        fits = fits and (parts.port is None or parts.port > 0) and not parts.fragment
    except ValueError:
        fits = False
    if not fits:
        raise ParamsError(
            "--database: write postgresql://USER:PASSWORD@HOST/NAME, with %40 for @, %2F for / in a password"
        )
    if set(parse_qs(parts.query, keep_blank_values=True)) - {"sslmode"}:
        raise ParamsError("--database: of what may follow the ?, only sslmode=... is known to Prefect and MLflow alike")
    if importlib.util.find_spec("psycopg") is None:
        raise ParamsError("--database: MLflow needs psycopg for PostgreSQL: `pip install 'mosis[postgres]'`")
