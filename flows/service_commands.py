"""`mosis up`, `down` and `notify`: the service of a workspace."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tasks.errors import ParamsError, SourceError


def add_commands(commands: Any) -> None:
    """commands: what argparse's add_subparsers gave."""
    up = commands.add_parser("up", help="label what arrives in the inbox: start the service, or what died of it")
    add_workspace(up)
    up.add_argument("--inbox", metavar="URL", help="a folder or an fsspec URL; kept in params.yaml as service.inbox")
    up.add_argument(
        "--database",
        metavar="URL",
        help="postgresql://USER:PASSWORD@HOST/NAME for Prefect and MLflow, ${NAME} in it is read from the environment "
        "(default: sqlite in the workspace)",
    )
    up.add_argument("--host", help="interface of both servers (default: 127.0.0.1, this machine alone)")
    up.set_defaults(command=up_command)

    down = commands.add_parser("down", help="end the service; what is labelled stays, what waits is found again")
    add_workspace(down)
    down.set_defaults(command=down_command)

    notify = commands.add_parser("notify", help="say that a video has arrived in the inbox: it is taken in at once")
    notify.add_argument("path", metavar="PATH", help="the video, in the inbox")
    add_workspace(notify)
    notify.set_defaults(command=notify_command)


def up_command(options: argparse.Namespace) -> None:
    workspace = find_workspace(options)
    from flows import environment, service
    from tasks import library, params, versioning
    from tasks import workspace as workspaces
    from tasks.inbox import inbox_url
    from tasks.sources.places import hide_credentials, is_local, refuse_credentials

    if options.inbox is not None:
        place = options.inbox
        refuse_credentials(place)
        place = str(Path(place).expanduser().absolute()) if is_local(place) else place
        workspaces.configure(workspace, {"service.inbox": place})
    settings = params.load(workspace / "params.yaml")
    versioning.check_files(workspace)
    workspaces.check_writable(workspace)
    library.prepare(workspace)
    url = inbox_url(settings.service.inbox, workspace)
    if is_local(url) and options.inbox is None:
        Path(url).mkdir(parents=True, exist_ok=True)
    elif is_local(url) and not Path(url).is_dir():
        raise SourceError(f"{url}: no such folder: make it, or name another inbox")
    database = environment.fill_in_database(options.database) if options.database is not None else None
    running = service.up(workspace, settings, database=database, host=options.host)
    for name in service.NAMES:
        print(f"{name:<9}{'started' if name in running.started else 'runs'}  {running.urls.get(name, '')}".rstrip())
    print(f"inbox    {hide_credentials(url)}, looked at by `{settings.service.cron}` and after `mosis notify PATH`")


def down_command(options: argparse.Namespace) -> None:
    workspace = find_workspace(options)
    from flows import service

    ended = service.down(workspace)
    print(f"ended: {', '.join(ended)}" if ended else "nothing was running")


def notify_command(options: argparse.Namespace) -> None:
    workspace = find_workspace(options)
    from flows import service
    from flows.notify import emit_arrival
    from tasks import params
    from tasks.inbox import inbox_url
    from tasks.sources.places import hide_credentials, is_local

    url = inbox_url(params.load(workspace / "params.yaml").service.inbox, workspace)
    path = options.path
    if is_local(path):
        path = str(Path(path).expanduser().absolute())
        if not Path(path).exists():
            raise SourceError(f"{hide_credentials(path)}: no such file")
    within = Path(path).resolve().is_relative_to(Path(url).resolve()) if is_local(url) else path.startswith(url)
    if not within or is_local(path) != is_local(url):
        raise SourceError(f"{hide_credentials(path)}: not in the inbox: put it into {hide_credentials(url)} first")
    emit_arrival(service.api_url(workspace), workspace, hide_credentials(path))
    print("told the service")


def add_workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, default=Path(), metavar="DIR", help="default: the one we are in")


def find_workspace(options: argparse.Namespace) -> Path:
    from tasks import workspace

    folder: Path = options.workspace.resolve()
    if not workspace.is_workspace(folder):
        raise ParamsError(f"{folder} is no workspace: make one with `mosis init DIR` or `mosis run SOURCE ...`")
    return folder
