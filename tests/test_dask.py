"""A Dask cluster of separate processes does what processes of this machine do, also where its workers die."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_work import tell
from conftest import tiny_synthetic

from tasks import ingest, pairs
from tasks import params as parameters
from tasks.cluster import open_executor
from tasks.files import sha256_tree
from tasks.params import ComputeParams, Params
from tasks.pool import ClusterError, Outcome, WorkerDied, map_unordered

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a scheduler on loopback with two workers, a process each."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        env=environment,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def compute(address: str) -> ComputeParams:
    return ComputeParams(executor="dask", dask_address=address)


def gather(compute: ComputeParams, items: list[Any]) -> list[Outcome[Any, int]]:
    with open_executor(compute) as executor:
        outcomes = list(map_unordered(tell, items, 1, None, executor=executor))
    return sorted(outcomes, key=lambda outcome: outcome.index)


def test_no_items_give_nothing(compute: ComputeParams) -> None:
    assert gather(compute, []) == []


def test_a_dead_worker_costs_nothing_and_one_that_always_dies_its_own_item(
    compute: ComputeParams, tmp_path: Path
) -> None:
    items = [(str(tmp_path), number) for number in range(8)]
    outcomes = gather(compute, items)
    assert [outcome.item for outcome in outcomes] == items, "nothing is lost, nothing comes twice"
    assert [outcome.value for outcome in outcomes] == [0, 1, None, None, 16, 25, 36, 49]
    assert isinstance(outcomes[2].error, WorkerDied)
    assert isinstance(outcomes[3].error, ValueError)
    begun = [name.partition("-")[0] for name in os.listdir(tmp_path)]
    # More than twice where it stood on a worker that item 2 ended, whose results Dask makes again.
    assert begun.count("1") >= 2, "what a dead worker was at is done again"


def test_ingest_and_pairs_give_the_same_bytes_on_a_cluster(
    compute: ComputeParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny_params()
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, own in ((here, params), (there, replace(params, compute=compute))):
        folder.mkdir()
        monkeypatch.chdir(folder)
        ingest.run(own, folder)
        pairs.run(own, folder)
        (folder / "data" / "pairs" / "pairs.parquet").rename(folder / "pairs.parquet")
    for name in ("data/clips", "data/pairs", "pairs.parquet"):
        assert sha256_tree([here / name]) == sha256_tree([there / name]), name


def test_a_job_whose_worker_was_killed_is_done_from_the_start(tmp_path: Path) -> None:
    """The folder that a killed process left is in nobody's way."""
    [job, *_] = ingest._list_jobs(tiny_params().ingest)
    work = ingest._Work(job, tmp_path / "work")
    made = ingest._run_job(work)
    (work.folder / "torn.zip").touch()
    assert ingest._run_job(work) == made
    assert not (work.folder / "torn.zip").exists()


def test_an_address_where_nobody_answers_fails_in_a_line_within_seconds() -> None:
    started = time.monotonic()
    nobody = ComputeParams(executor="dask", dask_address="tcp://127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at .* tcp://127.0.0.1:1") as caught:
        gather(nobody, [])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 30


def test_a_lost_scheduler_ends_the_work_and_blames_no_item() -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        compute = ComputeParams(executor="dask", dask_address=cluster.scheduler_address)
        with open_executor(compute) as executor:
            outcomes = map_unordered(time.sleep, [0.0, 60.0, 60.0], 1, None, executor=executor)
            assert next(outcomes).error is None
            cluster.close()
            with pytest.raises(ClusterError, match="was lost"):
                next(outcomes)


def test_workers_with_other_code_are_refused(compute: ComputeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.cluster.digest_code", lambda: "another")
    with pytest.raises(ClusterError, match="other code"):
        gather(compute, [("", 0)])


def test_workers_without_the_workspace_are_refused(
    compute: ComputeParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    monkeypatch.setattr("os.getcwd", lambda: str(tmp_path / "gone"))
    with pytest.raises(ClusterError, match="one file system"):
        gather(compute, [("", 0)])


def tiny_params() -> Params:
    document = tiny_synthetic(videos=3, frames=6, speed=[2.0, 3.5])
    document["pairs"] |= {"train_share": 0.5, "val_share": 0.5}
    return parameters.parse(document)
