"""Several processes train as one does: the same batches, gradients and losses; one writes; none is left behind."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks_toy
import torch
import torch.distributed as dist
import yaml
from conftest import tiny_training
from training_toy import toy_store

from tasks.errors import MosisError, ParamsError
from tasks.files import read_json
from tasks.params import BESIDE_STAGES, Params, parse
from tasks.training.batches import labelled_samples, make_batch, pair_samples
from tasks.training.distributed import ALONE, Ranks
from tasks.training.joint_norm import join_norms
from tasks.training.launch import launch
from tasks.training.ranks import STORE, Rank, read_rank

TESTS = Path(__file__).parent


def start(what: str, folder: Path) -> None:
    launch(2, [sys.executable, str(TESTS / "ranks_toy.py"), what, str(folder)], folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made."""
    folder = tmp_path_factory.mktemp("two")
    start("everything", folder)
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("method", "labels"), ranks_toy.CASES)
def test_two_halves_have_the_losses_gradients_and_statistics_of_their_whole(
    two: Path, method: str, labels: str
) -> None:
    joint, alone = load(two / f"{method}-{labels}.pt"), ranks_toy.take_gradients(ALONE, method, labels)
    assert joint.keys() == alone.keys(), "what has no gradient in one process has none in two"
    scale = max(float(value.abs().max()) for key, value in alone.items() if key.startswith("gradient"))
    for key, value in alone.items():
        bound = 5e-6 * scale if key.startswith("gradient") else 2e-6 * max(float(value.abs().max()), 1)
        assert float((joint[key] - value).abs().max()) <= bound, key


def test_a_joint_norm_in_half_precision_keeps_its_gradients_where_means_are_large(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    torch.nn.init.uniform_(model[0].weight, 0.5, 2.0)
    join_norms(model)
    x = (30 + torch.randn(8, 3, 6, 6)).to(dtype).requires_grad_()
    grad = (x.detach() - 30 + 0.1 * torch.randn(8, 3, 6, 6)).to(dtype)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        found = model(x)
        found.backward(grad)
    finally:
        dist.destroy_process_group()
    wide = x.detach().double().requires_grad_()
    expected = torch.nn.functional.batch_norm(
        wide, None, None, model[0].weight.double(), model[0].bias.double(), training=True
    )
    expected.backward(grad.double())
    assert x.grad is not None
    assert wide.grad is not None
    assert x.grad.dtype == found.dtype == dtype
    assert float((x.grad - wide.grad).abs().max()) < 2 * torch.finfo(dtype).eps * float(wide.grad.abs().max())


def test_two_processes_give_the_losses_of_one_and_only_the_first_writes(two: Path, tmp_path: Path) -> None:
    ranks_toy.toy_fit(ALONE, tmp_path)
    one, first, second = (load(path) for path in (tmp_path / "told-0.pt", two / "told-0.pt", two / "told-1.pt"))
    assert [iteration for iteration, *_ in first["losses"]] == [iteration for iteration, *_ in one["losses"]]
    assert np.allclose(first["losses"], one["losses"], rtol=1e-5)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert second["losses"] == []
    assert second["resumed"] == []
    assert sorted(path.name for path in two.glob("validated-*")) == ["validated-0-15", "validated-0-30"]


def test_all_stop_together_where_a_loss_is_no_number(two: Path) -> None:
    said = [(two / f"diverged-{rank}.txt").read_text() for rank in range(2)]
    assert all("training has diverged by iteration" in text for text in said)
    kept = np.load(next((two / "diverged").rglob("diverged-*.npz")))
    assert len(kept["frame_a"]) == 4, "the whole batch is kept, not a part of it"


def test_processes_that_differ_are_refused(two: Path) -> None:
    assert not (two / "differing-0.txt").exists()
    assert "differs from the first in parameters:" in (two / "differing-1.txt").read_text()


def test_after_a_killed_process_one_process_goes_on(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_TOY_KILL", "1")
    with pytest.raises(MosisError, match="process 2 of 2 was ended by signal 9"):
        start("toy_fit", tmp_path)
    ranks_toy.toy_fit(ALONE, tmp_path)
    told = load(tmp_path / "told-0.pt")
    assert told["resumed"] == [(5, [])]
    whole = {iteration: losses for iteration, *losses in load(two / "told-0.pt")["losses"]}
    assert np.allclose(told["losses"][-1][1:], whole[30], rtol=1e-4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process that its parent has died")
@pytest.mark.parametrize("killed", ["one of them", "who started them"])
def test_when_one_is_killed_all_end_within_seconds(killed: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.training.launch import launch\n"
        "launch(2, [sys.executable, sys.argv[1], 'sit', sys.argv[2]], Path(sys.argv[2]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(TESTS / "ranks_toy.py"), str(tmp_path)]) as process:
        wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        pids = {int(path.name.split("-")[1]): int(path.name.split("-")[2]) for path in tmp_path.glob("pid-*")}
        os.kill(process.pid if killed == "who started them" else pids[1], signal.SIGKILL)
        killed_at = time.monotonic()
        assert process.wait(60) != 0
    wait_until(lambda: not any(is_alive(pid) for pid in pids.values()))
    assert time.monotonic() - killed_at < 30


def test_the_stage_trains_in_two_processes_what_it_trains_in_one(prepared: Path, tmp_path: Path) -> None:
    made = {count: run_stage(prepared, tmp_path / str(count), count) for count in (1, 2)}
    rows = [read_rows(folder / "losses.csv") for folder in made.values()]
    assert len(rows[0]) == len(rows[1]) > 0
    totals = [[float(row["total"]) for row in table] for table in rows]
    # The mean of two steps, so that the second has the rounding of the first; one step alone is compared above.
    assert totals[1][0] == pytest.approx(totals[0][0], rel=1e-4)
    assert totals[1] == pytest.approx(totals[0], rel=1e-2), "rounding grows with the steps"
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in made.values()]
    assert names[0] == names[1], "the same files, no checkpoint left"
    resolved = [(folder / "params.resolved.yaml").read_bytes() for folder in made.values()]
    assert resolved[0] == resolved[1], "where it was computed is no part of a result"
    assert read_json(made[2] / "summary.json")["fingerprint"] == read_json(made[1] / "summary.json")["fingerprint"]


def test_a_batch_that_the_processes_do_not_divide_is_refused(tmp_path: Path) -> None:
    class Three(Ranks):
        count = 3

    with pytest.raises(ParamsError, match=r"train\.batch_size: 4 is the batch of all 3 training processes"):
        ranks_toy.toy_fit(Three(), tmp_path)


@pytest.mark.parametrize("copy_paste", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_parts_of_a_batch_are_the_batch(copy_paste: bool, labelled: bool) -> None:  # noqa: FBT001
    store, labels = toy_store()
    samples = labelled_samples(store, labels) if labelled else pair_samples(store)
    settings: dict[str, Any] = {"batch_size": 6, "seed": 3, "iteration": 5, "augment": True, "copy_paste": copy_paste}
    whole = make_batch(store, samples, labels if labelled else None, **settings)
    parts = [make_batch(store, samples, labels if labelled else None, **settings, part=(n, 3)) for n in range(3)]
    assert np.array_equal(np.concatenate([part.frame_a for part in parts]), whole.frame_a)
    assert np.array_equal(np.concatenate([part.dt_s for part in parts]), whole.dt_s)
    if not labelled:
        assert np.array_equal(np.concatenate([part.frame_b for part in parts]), whole.frame_b)
        return
    assert whole.labels is not None
    for name in ("masks", "scores", "counts"):
        joined = np.concatenate([getattr(part.labels, name) for part in parts])
        assert np.array_equal(joined, getattr(whole.labels, name)), name


def test_a_process_knows_its_rank_from_its_environment() -> None:
    assert read_rank({}) == read_rank({"RANK": "3"}) == Rank()
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert read_rank(told) == Rank(3, 4, 1)
    assert not Rank(3, 4, 1).holds_workspace
    assert Rank(0, 4).holds_workspace
    assert not read_rank({**told, "RANK": "0", STORE: "/a/file"}).holds_workspace, "who started it holds it"
    for wrong in ({"RANK": "4"}, {"RANK": "x"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "-1"}):
        with pytest.raises(ParamsError, match="make no sense"):
            read_rank({**told, **wrong})


def test_where_to_compute_is_checked_by_name() -> None:
    assert BESIDE_STAGES[0] == "compute"
    assert parse({}).compute == Params().compute
    for wrong, said in (
        ({"executor": "spark"}, r"compute\.executor: .*'local' or 'dask'"),
        ({"executor": "dask"}, r"compute\.dask_address: needed"),
        ({"train_processes": 0}, r"compute\.train_processes: "),
        ({"train_processes": 3}, r"train\.batch_size: 16 is the batch of all 3 compute\.train_processes together"),
        ({"dask_adress": "x"}, r"unknown key compute\.dask_adress: did you mean dask_address\?"),
    ):
        with pytest.raises(ParamsError, match=said):
            parse({"compute": wrong})


def run_stage(prepared: Path, workspace: Path, processes: int) -> Path:
    """outputs/train of `python -m tasks train`."""
    shutil.copytree(prepared / "data", workspace / "data")
    document = tiny_training(batch_size=4) | {"compute": {"train_processes": processes}}
    (workspace / "params.yaml").write_text(yaml.safe_dump(document))
    environment = {**os.environ, "MOSIS_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tasks", "train"]
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("labels on") == 1, "one speaks for all"
    assert "Warning" not in done.stderr
    return workspace / "outputs" / "train"


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def wait_until(condition: Any) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited two minutes")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
