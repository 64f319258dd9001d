"""The benchmarks' harness: rows outlive a kill, a resumed run repeats none, and what cannot be done is said at once."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import ROOT, above_zero, at_least, format_table, without_places


def run_toy(folder: Path, *arguments: str, sources: str = "none") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmark_toy", "--output", str(folder / "toy.json")]
    return subprocess.run(
        [*command, "--cache", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=120,
        cwd=ROOT, env={**os.environ, "TOY_SOURCES": sources},
    )  # fmt: skip


def read_rows(folder: Path) -> dict[str, Any]:
    return {row["row"]: row for row in json.loads((folder / "toy.json").read_text())["rows"]}


def test_each_row_has_a_process_and_one_that_fails_costs_no_other(tmp_path):
    done = run_toy(tmp_path, "work", "refuse", "die", "work", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path)
    assert list(rows) == ["0 work", "1 refuse", "2 die", "3 work"]
    assert rows["1 refuse"]["failed"] == "ValueError: two lines"
    assert rows["2 die"]["failed"] == "killed by SIGKILL"
    assert rows["0 work"]["pid"] != rows["3 work"]["pid"]
    assert rows["0 work"]["jobs"] == 2
    last = json.loads(done.stdout.splitlines()[-1])
    assert last == json.loads((tmp_path / "toy.json").read_text())
    assert last["note"] == "done"
    assert last["command"].startswith("python -m benchmarks.")
    # Those that failed run again, and no other.
    run_toy(tmp_path, "work", "refuse", "die", "work", "--jobs", "2", "--resume")
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(calls[1::2]) == ["die", "die", "refuse", "refuse", "work", "work"]
    assert read_rows(tmp_path)["0 work"] == rows["0 work"]


def test_a_row_may_spread_its_own_work_over_processes(tmp_path):
    done = run_toy(tmp_path, "spread")
    assert done.returncode == 0, done.stderr
    assert read_rows(tmp_path)["0 spread"]["squares"] == [1, 4, 9]


def test_where_every_row_fails_so_does_the_benchmark(tmp_path):
    done = run_toy(tmp_path, "refuse", "refuse")
    assert done.returncode == 1
    assert read_rows(tmp_path)["1 refuse"]["failed"] == "ValueError: two lines"


def test_where_nothing_can_be_written_nothing_is_run(tmp_path):
    (tmp_path / "file").touch()
    for output, told in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "file" / "x.json", "name another --output"),
    ):
        done = run_toy(tmp_path, "work", "--output", str(output))
        assert done.returncode == 1
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "calls").exists()
    done = run_toy(tmp_path, "work", "--cache", str(tmp_path / "file" / "cache"), "--no-save")
    assert "name another --cache" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("rows", ["absent", None, 3, [1], [{"kind": "x"}]])
def test_a_results_file_without_rows_is_not_resumed(tmp_path, rows):
    run_toy(tmp_path, "work")
    document = json.loads((tmp_path / "toy.json").read_text())
    document["rows"] = rows
    if rows == "absent":
        del document["rows"]
    (tmp_path / "toy.json").write_text(json.dumps(document))
    done = run_toy(tmp_path, "work", "--resume")
    assert done.returncode == 1
    assert "holds no rows: run without --resume" in done.stderr
    (tmp_path / "toy.json").write_text("{")
    assert "run without --resume" in run_toy(tmp_path, "work", "--resume").stderr


def test_numbers_of_nothing_are_refused():
    assert at_least(2)("2") == 2
    assert above_zero("0.5") == 0.5
    for kind, text in ((at_least(2), "1"), (above_zero, "0"), (above_zero, "nan"), (above_zero, "inf")):
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_a_killed_benchmark_keeps_its_rows_and_goes_on(tmp_path):
    assert run_toy(tmp_path, "work", "stop", "work").returncode == -9
    first = read_rows(tmp_path)
    assert list(first) == ["0 work"]
    for changed, sources in ((["--colour", "red"], "none"), ([], "other")):
        refused = run_toy(tmp_path, "work", "stop", "work", "--resume", *changed, sources=sources)
        assert refused.returncode == 1
        assert ("other options" if changed else "other sources") in refused.stderr
        assert "Traceback" not in refused.stderr
    assert run_toy(tmp_path, "work", "stop", "work", "--resume").returncode == 0
    assert list(read_rows(tmp_path)) == ["0 work", "1 stop", "2 work"]
    assert read_rows(tmp_path)["0 work"] == first["0 work"]
    assert (tmp_path / "calls").read_text().split("\n")[:-1] == ["0 work", "1 stop", "1 stop", "2 work"]


def test_a_table_grows_by_seeds_and_drops_rows_that_the_sources_changed_under(tmp_path):
    assert run_toy(tmp_path, "work", "change", "work", "--seeds", "1").returncode == 0
    first = read_rows(tmp_path)
    assert [row.get("sources_changed") for row in first.values()] == [None, True, True]
    assert run_toy(tmp_path, "work", "change", "work", "--resume", "--seeds", "1", "2").returncode == 0
    rows = read_rows(tmp_path)
    assert rows["0 work"] == first["0 work"]
    assert [row.get("sources_changed") for row in rows.values()] == [None] * 3
    assert (tmp_path / "calls").read_text().split()[1::2] == ["work", "change", "work", "change", "work"]


def test_table_by_hand():
    assert format_table(["row", "AP"], [["a", 0.12345], ["long", None]]) == "row      AP\na     0.123\nlong      -"


def test_a_result_names_no_folder():
    arguments = ["--seeds", "10", "--cache", "/some/where", "--output=/x.json", "--pictures", "p", "--jobs", "2"]
    assert without_places(arguments) == ["--seeds", "10", "--jobs", "2"]
    assert without_places(["--output", "benchmarks/results/x.json", "--cache"]) == [
        "--output", "benchmarks/results/x.json"
    ]  # fmt: skip
    assert without_places([]) == []
