"""`mosis retrain`, `decisions`, `promote` and `rollback`: the model improves by itself, people have the last word."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flows.service_commands import add_workspace, find_workspace


def add_commands(commands: Any) -> None:
    """commands: what argparse's add_subparsers gave."""
    retrain = commands.add_parser("retrain", help="train on what has come into the library; promote it if no worse")
    add_workspace(retrain)
    retrain.add_argument("--force", action="store_true", help="whether enough new video has come or not")
    retrain.set_defaults(command=retrain_command)

    decisions = commands.add_parser("decisions", help="what became of each challenger, and by which rule")
    add_workspace(decisions)
    decisions.set_defaults(command=decisions_command)

    promote = commands.add_parser("promote", help="make a version champion, whatever the gate said")
    promote.add_argument("version", metavar="VERSION", help="its number in the registry")
    add_workspace(promote)
    promote.set_defaults(command=promote_command)

    rollback = commands.add_parser("rollback", help="make the version champion that was it before")
    add_workspace(rollback)
    rollback.set_defaults(command=rollback_command)


def retrain_command(options: argparse.Namespace) -> None:
    workspace = find_workspace(options)
    from flows import environment, server
    from tasks import params, versioning
    from tasks import workspace as workspaces

    params.load(workspace / "params.yaml")
    versioning.check_files(workspace)
    workspaces.check_writable(workspace)
    environment.prepare(workspace)
    wait_for_server = server.start()
    from flows.retrain import retrain
    from tasks.promotion import ledger

    wait_for_server()
    done: Any = retrain(str(workspace), force=options.force)  # Prefect types it as the state that holds it
    print(done.describe())
    if done.record is not None:
        print(f"decision {ledger.page_path(workspace, done.record.number)}")


def decisions_command(options: argparse.Namespace) -> None:
    workspace = find_workspace(options)
    from tasks.promotion import ledger

    records = ledger.read_records(workspace)
    for record in records:
        print(ledger.describe(record))
    if records:
        print(f"pages    {workspace / ledger.FOLDER}")
    else:
        print("no decision yet: `mosis retrain` trains a challenger and has it compared")


def promote_command(options: argparse.Namespace) -> None:
    workspace = find_workspace(options)
    from tasks import tracking

    version = tracking.read_version(workspace, options.version).version
    check_whole(workspace, version)
    say(tracking.promote(workspace, version))


def rollback_command(options: argparse.Namespace) -> None:
    workspace = find_workspace(options)
    from tasks import tracking

    check_whole(workspace, tracking.find_previous(workspace))
    say(tracking.rollback(workspace))


def check_whole(workspace: Path, version: str) -> None:
    """Raises DataError unless its files are there and are those that were registered: all new video depends on it."""
    from tasks import model_store
    from tasks.tracking import REGISTERED_NAME

    with model_store.fetch_files(f"models:/{REGISTERED_NAME}/{version}", workspace):
        pass


def say(move: Any) -> None:
    before = f", in place of version {move.before}" if move.before else ""
    print(f"champion is version {move.version}{before}: new video is labelled with it from the next batch on")
