"""MLflow's own server over a workspace's store, for people and for other machines."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from urllib.parse import urlsplit

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

    try:
        may_write = asyncio.run(_make_schema(f"postgresql://{database.partition('://')[2]}"))
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        raise _refusal(database, "refuses this user or password: check them") from None
    except asyncpg.InvalidCatalogNameError:
        raise _refusal(database, "has no database of that name: make it first, with createdb") from None
    except asyncpg.InsufficientPrivilegeError:
        raise _refusal(database, "lets this user make no schema: make it the owner of the database") from None
    except (OSError, TimeoutError):
        raise _refusal(database, "does not answer: is it running there?") from None
    except (ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise _refusal(database, f"does not let us in ({type(error).__name__})") from None
    if not may_write:
        raise _refusal(database, "lets this user make no tables: make it the owner of the database")


async def _make_schema(database: str) -> bool:
    """Whether the user may make tables beside it, which Prefect does."""
    import asyncpg

    connection = await asyncpg.connect(database, timeout=20)
    try:
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        return bool(await connection.fetchval("SELECT has_schema_privilege('public', 'CREATE')"))
    finally:
        await connection.close()


def _refusal(database: str, reason: str) -> StorageError:
    parts = urlsplit(database)
    return StorageError(f"--database: PostgreSQL at {parts.hostname}:{parts.port or 5432} {reason}")
