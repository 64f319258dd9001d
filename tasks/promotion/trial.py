"""A challenger's trial: scored beside the champion, decided about once, and the decision carried out.

Each step can be repeated after a kill: scores lie in a folder of their own, the record is written before anything
follows from it, and the alias is moved only while the champion is still the one that was compared with.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks import tracking
from tasks.errors import BusyError, DataError, StorageError
from tasks.files import storage_errors
from tasks.lineage import read_revisions
from tasks.params import Params
from tasks.promotion import ledger, rounds, scoring
from tasks.promotion.gate import BOUNDS, CANARY, Scores, decide
from tasks.promotion.ledger import DECIDED, DONE, Record
from tasks.promotion.page import write_page
from tasks.promotion.rounds import Round
from tasks.promotion.scoring import Plan, Request
from tasks.tracking import REGISTERED_NAME, Tracker
from tasks.worker_process import WorkerProcess


def why_nothing_new(workspace: Path, challenger: str, champion: str | None) -> str | None:
    """Why there is nothing to decide about this version, or None: it leads, or was decided about before."""
    if challenger == champion:
        return f"version {challenger} is champion: the training came out as it was"
    tags = tracking.read_version(workspace, challenger).tags
    record = ledger.find_record(workspace, challenger)
    verdict = tags.get(tracking.GATE)
    if verdict in (tracking.PROMOTED, tracking.REFUSED) or (record is not None and record.state == DONE):
        rule = tags.get(tracking.GATE_RULE) or (record.rule if record else "")
        return f"version {challenger} was decided about before: {verdict or 'done'} ({rule})"
    return None


def score_version(workspace: Path, settings: Params, plan: Plan, version: str) -> Path:
    """The folder with the version's scores under this plan, made in a process of its own unless they are there.

    Raises DataError where the version cannot be loaded or scored, WorkerDied where its process died or took too long.
    """
    digest = tracking.read_version(workspace, version).tags.get("package_sha256", f"version-{version}")
    folder = workspace / scoring.FOLDER / plan.digest / digest[:16]
    try:
        scoring.read_scores(folder)
    except DataError:
        request = Request(f"models:/{REGISTERED_NAME}/{version}", workspace, plan, folder)
        with WorkerProcess() as worker:
            worker.call(scoring.score, request, timeout_s=60 * settings.service.gate.timeout_minutes)
    return folder


def score_challenger(workspace: Path, settings: Params, plan: Plan, version: str) -> Path | str:
    """As `score_version`, or the reason in one line where the version itself is at fault.

    A death or an error that nobody expected may be the machine's fault, a second one is taken for the version's: tried
    for ever it would hold up all later rounds, and a person can still promote it.
    """
    for is_last in (False, True):
        try:
            return score_version(workspace, settings, plan, version)
        except DataError as error:
            return f"it cannot be scored: {' '.join(str(error).split())[:300]}"
        except (StorageError, BusyError):
            raise
        except Exception as error:  # noqa: BLE001  # its code is not ours, and may raise anything
            if is_last:
                return f"it cannot be scored, tried twice: {' '.join(str(error).split())[:300]}"
    raise AssertionError("two tries have ended without an outcome")


def decide_about(
    workspace: Path,
    settings: Params,
    one: Round,
    plan: Plan,
    challenger: tuple[str, Path | str],
    champion: tuple[str, Path] | None,
) -> Record:
    """Decide and write the record. challenger, champion: versions and where their scores are."""
    if scoring.make_plan(workspace, settings).frames != plan.frames:
        raise BusyError(f"{workspace}: the data changed while versions were compared: the next run compares them anew")
    scores = {"challenger": _read(challenger[1]), "champion": _read(champion[1]) if champion else None}
    ours, theirs = scores["challenger"], scores["champion"]
    assert ours is not None
    frames = [one_of.figures.get("held_out_frames") for one_of in (ours, theirs) if one_of and one_of.figures]
    if len(set(frames)) > 1:
        for place in (challenger[1], champion and champion[1]):
            if isinstance(place, Path):
                shutil.rmtree(place, ignore_errors=True)
        raise StorageError(
            f"versions {challenger[0]} and {champion and champion[0]} were not scored on the same frames, a clip could "
            "not be read for one of them: the next run scores both anew"
        )
    records = ledger.read_records(workspace)
    names = tuple(bound.figure for bound in BOUNDS if bound.on == CANARY)
    best = ledger.best_figures(records, plan.data, names) if champion else {}
    record = Record(
        number=1 + max((known.number for known in records), default=0),
        decided_at=round(time.time(), 3),
        challenger=challenger[0],
        champion=champion[0] if champion else None,
        decision=decide(theirs, ours, settings.service.gate, best_before=best),
        figures={who: dict(one_of.figures) if one_of else {} for who, one_of in scores.items()},
        data={**plan.data, "library": one.revision, **read_revisions(workspace)},
        self_training=one.teacher is not None,
        pictures={
            who: folder.relative_to(workspace).as_posix()
            for who, folder in (("challenger", challenger[1]), ("champion", champion[1] if champion else None))
            if isinstance(folder, Path)
        },
    )
    ledger.write_record(workspace, record)
    return record


def take_teacher(workspace: Path) -> str | None:
    """The champion's files, checked, in a folder of the workspace, which is named; None where there is no champion."""
    champion = tracking.find_champion(workspace)
    if champion is None:
        return None
    from tasks import model_store  # imports mlflow

    place = workspace / scoring.FOLDER  # where what a kill leaves is cleared
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    uri = f"models:/{REGISTERED_NAME}/{champion.version}"
    with model_store.fetch_files(uri, workspace, place=place) as (version, folder):
        return rounds.keep_teacher(workspace, folder, version.tags["package_sha256"])


def carry_out(workspace: Path, record: Record) -> Record:
    """Promote or not, tag the version, write the page, tell MLflow; the record as it is then. Can be repeated."""
    if record.led is None:  # else the alias was moved, or was not to be, and people may have moved it since
        led, cause, outcome = _move(workspace, record)
        record = dataclasses.replace(record, led=led, cause=cause, outcome=outcome)
        ledger.write_record(workspace, record)
    tags = {tracking.GATE: _verdict(record), tracking.GATE_RULE: record.rule, "gate_round": str(record.number)}
    figures = {f"gate_{name}": f"{value:.4f}" for name, value in _plain_figures(record, "challenger").items()}
    tracking.tag_version(workspace, record.challenger, {**tags, **figures})
    write_page(workspace, record)
    record = _track(workspace, record)
    record = dataclasses.replace(record, state=DONE)
    ledger.write_record(workspace, record)
    clear_scores(workspace, record)
    return record


def clear_scores(workspace: Path, record: Record) -> None:
    """Remove the scores of other rounds and what kills have left; those of this one's data may serve the next."""
    kept = {Path(place).parent.name for place in record.pictures.values()}
    folder = workspace / scoring.FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def carry_out_pending(workspace: Path) -> list[Record]:
    """All that was decided before a kill and not carried out."""
    return [carry_out(workspace, one) for one in ledger.read_records(workspace) if one.state == DECIDED]


def _verdict(record: Record) -> str:
    return tracking.PROMOTED if record.promotes else tracking.REFUSED


def _move(workspace: Path, record: Record) -> tuple[bool, str, str]:
    """(led, cause, outcome): the alias moves only where the champion is the one that was compared with."""
    version, decision = record.challenger, record.decision
    if not decision.promoted:
        return False, decision.rule, f"version {version} refused: {decision.rule}"
    found = tracking.find_champion(workspace)
    champion = found.version if found else None
    done = True, decision.rule, f"version {version} is champion, in place of {record.champion or 'none'}"
    if champion == version:
        return done
    if tracking.ROLLED_BACK in tracking.read_version(workspace, version).tags:
        return True, decision.rule, f"version {version} was promoted, and rolled back by hand"
    if champion != record.champion:
        return False, "champion_changed", f"version {version} not promoted: the champion changed meanwhile"
    tracking.promote(workspace, version)
    return done


def _track(workspace: Path, record: Record) -> Record:
    """The decision as a run of MLflow, with its page."""
    tags = {
        "challenger_version": record.challenger,
        "champion_version": record.champion or "none",
        "gate": _verdict(record),
        "gate_rule": record.rule,
        "self_training": str(record.self_training).lower(),
    }
    tracker = Tracker.start(workspace, name="retrain", tags=tags, run_id=record.run_id)
    if tracker.run_id is None and tracking.is_on():
        raise StorageError("MLflow does not answer: the decision is carried out, and recorded by the next run")
    if tracker.run_id is None:
        return record
    # So that a run whose process is killed now is taken up again by the next, and does not stay RUNNING.
    record = dataclasses.replace(record, run_id=tracker.run_id)
    ledger.write_record(workspace, record)
    for who in ("champion", "challenger"):
        tracker.log({f"{who}.{name}": value for name, value in _plain_figures(record, who).items()}, record.number)
    for path in (ledger.page_path(workspace, record.number), ledger.record_path(workspace, record.number)):
        tracker.artifact(path)
    tracker.finish()
    if not tracker.is_open:
        raise StorageError("MLflow did not take the decision: it is carried out, and recorded by the next run")
    return record


def _plain_figures(record: Record, who: str) -> Mapping[str, float]:
    return {name: value for name, value in record.figures[who].items() if value is not None}


def _read(place: Path | str) -> Scores:
    """Scores of a folder; of a version that has none, the reason as its fault."""
    if isinstance(place, str):
        return Scores({}, {CANARY: place})
    scores: Any = scoring.read_scores(place)[0]
    return scores
