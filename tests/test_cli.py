from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import cli
from flows.cli import absolute_source, main, parse_size
from tasks import params
from tasks.errors import SourceError
from tasks.params import IngestParams
from tasks.settings import override
from tasks.sources import open_source


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, with nothing on standard output."""
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


def test_a_missing_source_is_named_before_a_workspace_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.mp4").touch()
    assert main(["run", "there.mp4", "nowhere.mp4"]) == 1
    assert "nowhere.mp4: no such file" in failure(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["there.mp4"]


def test_a_name_that_params_yaml_cannot_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"\xff.mp4")
    (tmp_path / name).touch()
    assert main(["run", name]) == 1
    assert "its name is not UTF-8" in failure(capsys)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("verb", [["init", "new"], ["run", "synthetic", "--workspace", "new"]])
def test_a_misspelt_key_fails_by_name_before_a_workspace_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    assert main([*verb, "--set", "train.mosis.presett=small"]) == 2
    assert "train.mosis.presett: did you mean preset?" in failure(capsys)
    assert not list(tmp_path.iterdir())


def test_a_misspelt_key_in_a_workspace_fails_before_any_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("trian: {}\n")
    assert main(["run"]) == 2
    assert "unknown key trian: did you mean train?" in failure(capsys)
    assert not (tmp_path / ".prefect").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (".mosis", b"", "cannot write"),  # stands for a disk that is full or not ours
        ("dvc.lock", b"stages: [", "dvc.lock is not valid YAML of DVC: restore it with git, or delete it"),
        ("dvc.lock", b"\xff", "dvc.lock is not valid YAML of DVC"),
        ("dvc.yaml", b"garbage", "dvc.yaml is not valid YAML of DVC: restore it with git"),
        ("params.yaml", b"\xff", "params.yaml is not"),
    ],
)
@pytest.mark.parametrize("sources", [[], ["synthetic", "--workspace", "."]])
def test_a_broken_workspace_is_named_before_any_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, words: str, sources: list[str]
) -> None:
    (tmp_path / "params.yaml").write_text("ingest:\n  sources: [synthetic]\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / name).write_bytes(content)
    assert main(["run", *sources]) != 0
    assert words in failure(capsys)
    assert not (tmp_path / ".prefect").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["run"], ["run", "--set", "train.seed=1"], ["run", "--set", "ingest.sources=[synthetic]"], ["demo"]),
        *(["status"], ["status", "gone"], ["status", "--workspace", "gone"]),
    ],
)
def test_outside_of_a_workspace_it_says_how_to_get_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "mosis init DIR" in failure(capsys)


def test_a_bad_size_is_refused_by_the_parameter_it_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "synthetic", "--size", "100x224"]) == 2
    assert "pairs.height" in failure(capsys)
    assert not list(tmp_path.iterdir())


def test_a_traceback_shows_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="workspace"):
        main(["run"])


def test_sizes_are_height_first() -> None:
    assert parse_size("128x224") == (128, 224)
    for text in ("128", "128x", "axb", "128x224x3", "-1x2", "", "²x64"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_size(text)


def test_a_dataset_s_local_path_is_looked_for_and_written_so_that_every_reader_of_yaml_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_source("davis:set") == f"davis:{tmp_path / 'set'}"
    for source in ("davis:s3://bucket/x", "library:library@abc", "nuscenes:", "synthetic"):
        assert absolute_source(source) == source
    with pytest.raises(SourceError, match="gone: no such file"):
        absolute_source("youtube_vis:gone")
    text = override("ingest:\n  sources: [synthetic]\n", {"ingest.sources": ["davis:/data"]}, name="params.yaml")
    assert '"davis:/data"' in text
    kept = override(text, {"train.iterations": 3}, name="params.yaml")
    assert '"davis:/data"' in kept
    assert YAML(typ="safe").load(kept)["ingest"]["sources"] == ["davis:/data"]


def test_a_dataset_on_this_machine_is_no_network() -> None:
    from flows.pipeline import reads_network

    assert not reads_network(["davis:file:///data", "davis:/data", "/data", "synthetic"])
    assert reads_network(["davis:s3://bucket/data"])
    assert reads_network(["https://host/a.mp4"])


def test_sources_set_by_key_make_a_workspace_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(cli, "run_pipeline", ran.append)
    assert main(["run", "--workspace", "new", "--set", "ingest.sources=[none.mp4]"]) == 1
    assert "none.mp4: no such file" in failure(capsys)
    (tmp_path / "a.mp4").touch()
    arguments = ["run", "--workspace", "new", "--set", "ingest.sources=[a.mp4]", "--set", "train.iterations=3"]
    assert main(arguments) == 0
    made = params.load(tmp_path / "new" / "params.yaml")
    assert made.ingest.sources == (str(tmp_path / "a.mp4"),)
    assert (made.train.iterations, made.evaluate.split) == (3, "all"), (
        "one for one's own video, as of `mosis run a.mp4`"
    )
    assert main(["run", "--workspace", "new", "--set", "train.iterations=4"]) == 0
    assert params.load(tmp_path / "new" / "params.yaml").train.iterations == 4
    assert ran == [Path("new")] * 2


def test_a_workspace_is_no_url(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["init", "s3://b/w"], ["run", "a.mp4", "--workspace", "s3://b/w"], ["status", "s3://b/w"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "a workspace is a folder of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["flows", "flows.cli"])
def test_the_command_runs_without_its_script(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:  # noqa: PT012
        patch.setattr(sys, "argv", ["mosis", "status", "gone"])
        patch.delitem(sys.modules, module, raising=False)
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    assert "gone is no workspace" in failure(capsys)


@pytest.mark.parametrize("kind", ["davis", "nuscenes", "youtube_vis", "library"])
def test_a_file_is_no_root_of_a_dataset(kind: str, tmp_path: Path) -> None:
    (tmp_path / "set.zip").touch()
    with pytest.raises(SourceError, match=rf"{kind}:.*set\.zip: is a file: give the folder that is the dataset's root"):
        open_source(f"{kind}:{tmp_path / 'set.zip'}", IngestParams())
