"""MLflow's own server over a workspace's store, for people and for other machines."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tasks.errors import StorageError
from tasks.process import set_quiet_defaults
from tasks.tracking.connection import PATIENCE, tracking_uri

SCHEMA = "mlflow"
"""Of MLflow's tables in PostgreSQL: Prefect's lie in the same database, and both name one table alike."""


def server_command(host: str, port: int) -> list[str]:
    """Its command; all secrets are in the environment, which other users cannot read, unlike a command line."""
    return [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]


def server_environment(workspace: Path, database: str | None) -> dict[str, str]:
    """database: postgresql://..., None for the workspace's own sqlite."""
    set_quiet_defaults()
    (workspace / "mlruns").mkdir(exist_ok=True)
    return {
        **PATIENCE,
        "MLFLOW_BACKEND_STORE_URI": tracking_uri(workspace) if database is None else with_schema(database),
        "MLFLOW_ARTIFACTS_DESTINATION": (workspace / "mlruns" / "artifacts").resolve().as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }


def with_schema(database: str) -> str:
    """The URL for SQLAlchemy with psycopg, its tables in a schema of their own."""
    plain = "postgresql+psycopg://" + database.partition("://")[2]
    return f"{plain}{'&' if '?' in plain else '?'}options=-csearch_path%3D{SCHEMA}"


def make_schema(database: str) -> None:
    """Make that schema where it is not there. Raises StorageError without quoting the URL, which holds a password."""
    import asyncpg

    async def create() -> None:
        connection = await asyncpg.connect(f"postgresql://{database.partition('://')[2]}", timeout=20)
        try:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        finally:
            await connection.close()

    try:
        asyncio.run(create())
    except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StorageError(
            f"--database: PostgreSQL does not let us in ({type(error).__name__}): check the URL"
        ) from None
