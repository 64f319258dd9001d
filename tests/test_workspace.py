from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import models
from tasks import params, workspace
from tasks.errors import ParamsError
from tasks.settings import override, parse_setting

SOURCE = """\
stages:
  ingest:
    cmd: python -m tasks ingest
    deps: [tasks/ingest.py]
    params: [ingest]
    outs: [data/clips]
  pairs:
    cmd: python -m tasks pairs
    deps: [data/clips, tasks/pairs.py, models/common]
    outs: [data/pairs]
"""


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with no git identity and an empty DVC store."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("EMAIL", "XDG_CONFIG_HOME", *(key for key in os.environ if key.startswith("GIT_AUTHOR"))):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_init_makes_a_repository_of_its_own_inside_another_and_takes_nothing_else(tmp_path: Path, home: Path) -> None:
    outer = tmp_path / "outer"
    folder = outer / "workspaces" / "cars"
    folder.mkdir(parents=True)
    git(outer, "init", "--quiet")
    (folder / "holiday.mp4").write_bytes(b"a video that was here before")
    (folder / ".gitignore").write_text("*.bak")

    workspace.init(folder, {"train.iterations": 7, "ingest.sources": ["/videos/a.mp4"]})

    assert git(folder, "rev-parse", "--show-toplevel").strip() == str(folder)
    assert git(folder, "status", "--porcelain").split() == ["??", "holiday.mp4"]
    assert git(folder, "log", "--format=%an") == "mosis\n"
    assert (folder / ".gitignore").read_text().splitlines()[:2] == [
        "*.bak",
        "# data, outputs and what servers keep:" + " DVC, MLflow and Prefect own these",
    ]
    read = params.load(folder / "params.yaml")
    assert (read.train.iterations, read.ingest.sources) == (7, ("/videos/a.mp4",))
    assert "# refused" not in (folder / "params.yaml").read_text()
    assert "slower video is refused" in (folder / "params.yaml").read_text(), "the template's comments are kept"
    with pytest.raises(ParamsError, match="workspace already"):
        workspace.init(folder, {})


def test_methods_are_those_that_exist_and_an_objective_is_none() -> None:
    assert set(params.METHODS) == set(models.METHODS)
    with pytest.raises(ParamsError, match=r"'motion_labels': it is an objective of mosis, train\.mosis\.objective"):
        params.parse({"train": {"method": "motion_labels"}})
    with pytest.raises(ParamsError, match="'yolo_supervized': did you mean yolo_supervised"):
        params.parse({"train": {"method": "yolo_supervized"}})


def test_self_training_where_it_would_do_nothing_is_refused() -> None:
    assert params.parse({"train": {"self_training": 1}}).train.self_training == 1
    for train in ({"method": "amd"}, {"mosis": {"objective": "em"}}):
        with pytest.raises(ParamsError, match=r"train\.self_training: adds to motion labels"):
            params.parse({"train": {"self_training": 1, **train}})


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "key", ["mosis.lambda_obj", "amd.dense_weight", "amd.min_contrast", "motion_labels.smoothness"]
)
def test_weights_of_losses_are_numbers(key: str, value: float) -> None:
    owner, name = key.split(".")
    with pytest.raises(ParamsError, match=name):
        params.parse({"train": {owner: {name: value}}})


def test_a_misspelt_key_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"train\.iteratons: did you mean iterations\?"):
        workspace.init(tmp_path / "new", {"train.iteratons": 7})
    assert not (tmp_path / "new").exists()


def test_a_half_made_workspace_is_finished(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "refresh_code", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            workspace.init(folder, {})
    assert not workspace.is_workspace(folder)
    workspace.init(folder, {})
    assert git(folder, "status", "--porcelain") == ""


def test_several_commands_may_look_at_once_whether_there_is_room(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tasks.workspace import check_writable\n"
        "for _ in range(30): check_writable(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    started = [subprocess.Popen(command, cwd=Path(__file__).parents[1]) for _ in range(3)]
    assert [one.wait() for one in started] == [0, 0, 0]
    assert list((tmp_path / ".mosis").iterdir()) == []


def test_configure_writes_only_what_changes(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("# mine\ntrain:\n  iterations: 5 # few\n")
    assert workspace.configure(tmp_path, {"train.iterations": 5}) is False
    assert path.read_text() == "# mine\ntrain:\n  iterations: 5 # few\n"
    assert workspace.configure(tmp_path, {"train.iterations": 6, "pairs.height": 64}) is True
    assert path.read_text() == "# mine\ntrain:\n  iterations: 6 # few\npairs:\n  height: 64\n"
    before = path.read_text()
    with pytest.raises(ParamsError, match=r"pairs\.height"):
        workspace.configure(tmp_path, {"pairs.height": 65})
    assert path.read_text() == before


def test_override_of_an_empty_document_and_of_null() -> None:
    assert override("{}", {}, name="p").strip() == "{}"
    assert "image_rate_hz: null # Hz" in override(
        "ingest:\n  image_rate_hz: 5 # Hz\n", {"ingest.image_rate_hz": None}, name="p"
    )
    with pytest.raises(ParamsError, match="iterations is a value"):
        override("train:\n  iterations: 5\n", {"train.iterations.more": 1}, name="p")


def test_an_override_is_refused_for_its_value_and_not_for_how_that_would_be_written() -> None:
    text = "ingest:\n  sources:             # or paths\n  - a.mp4\n  rate_hz: null\n"
    with pytest.raises(ParamsError, match="sources: tuple should have at least 1 item"):
        override(text, {"ingest.sources": []}, name="p")
    with pytest.raises(ParamsError, match=r"train\.seed: input should be less than"):
        override(text, {"train.seed": 2**64}, name="p")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.iterations=200", ("train.iterations", 200)),
        ("train.learning_rate=1e-3", ("train.learning_rate", 0.001)),
        ("ingest.rate_hz=null", ("ingest.rate_hz", None)),
        ("ingest.sources=[a=b.mp4, c.mp4]", ("ingest.sources", ["a=b.mp4", "c.mp4"])),
    ],
)
def test_settings_are_yaml(text: str, expected: tuple[str, object]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["", "train", "=1", "train..iterations=1", "train.iterations=[1"])
def test_broken_settings_are_refused_by_name(text: str) -> None:
    with pytest.raises(ParamsError, match="--set"):
        parse_setting(text)


def test_a_workspace_depends_on_fingerprints_instead_of_code() -> None:
    stages = yaml.safe_load(workspace.derive_dvc_yaml(SOURCE))["stages"]
    assert stages["ingest"] == {
        "cmd": "python -m tasks ingest",
        "params": ["ingest", {"code.lock.yaml": ["ingest"]}],
        "outs": ["data/clips"],
    }
    assert stages["pairs"]["deps"] == ["data/clips"]
    assert stages["pairs"]["params"] == [{"code.lock.yaml": ["pairs"]}]


def test_fingerprints_change_with_the_code_of_the_stage_alone(tmp_path: Path) -> None:
    for name in ("tasks/ingest.py", "tasks/pairs.py", "models/common/warp.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = workspace.fingerprints(SOURCE, tmp_path)
    (tmp_path / "models/common/__pycache__").mkdir()
    (tmp_path / "models/common/__pycache__/warp.pyc").write_bytes(b"compiled")
    assert workspace.fingerprints(SOURCE, tmp_path) == before
    (tmp_path / "models/common/warp.py").write_text("x = 2\n")
    after = workspace.fingerprints(SOURCE, tmp_path)
    assert after["ingest"] == before["ingest"]
    assert after["pairs"] != before["pairs"]


def test_an_upgrade_renews_dvc_yaml_unless_somebody_edited_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "code"
    for name in ("tasks/ingest.py", "tasks/pairs.py", "models/common/warp.py"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("x = 1\n")
    (code / "dvc.yaml").write_text(SOURCE)
    monkeypatch.setattr(workspace, "code_root", lambda: code)
    folder = tmp_path / "cars"
    folder.mkdir()

    workspace.refresh_code(folder)
    first = (folder / "code.lock.yaml").read_text()
    workspace.refresh_code(folder)
    assert (folder / "code.lock.yaml").read_text() == first
    for garbage in (b"{{{", b"\xff"):
        (folder / "code.lock.yaml").write_bytes(garbage)
        workspace.refresh_code(folder)
        assert (folder / "code.lock.yaml").read_text() == first

    (code / "dvc.yaml").write_text(SOURCE.replace("data/pairs", "data/couples"))
    workspace.refresh_code(folder)
    assert "data/couples" in (folder / "dvc.yaml").read_text()

    edited = (folder / "dvc.yaml").read_text() + "# mine\n"
    (folder / "dvc.yaml").write_text(edited)
    (code / "dvc.yaml").write_text(SOURCE)
    (code / "tasks/pairs.py").write_text("x = 2\n")
    workspace.refresh_code(folder)
    assert (folder / "dvc.yaml").read_text() == edited
    assert (folder / "code.lock.yaml").read_text() != first


def test_the_repository_itself_needs_no_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "params.py").touch()
    workspace.refresh_code(tmp_path)
    assert not (tmp_path / "code.lock.yaml").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/Street View.mp4", "street-view"),
        ("/data/davis/dog/JPEGImages", "dog"),
        ("s3://bucket/fleet/2024/", "2024"),
        ("https://host/clip.webm?sig=1", "clip"),
        ("/数据.mp4", "video"),
    ],
)
def test_a_place_is_named_after_the_first_source(tmp_path: Path, source: str, name: str) -> None:
    assert workspace.place_for([source, "/else.mp4"], tmp_path) == tmp_path / name


def test_other_sources_of_the_same_name_get_a_place_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text("ingest:\n  sources: [/a/clip.mp4]\n")
    assert workspace.place_for(["/a/clip.mp4"], tmp_path) == folder
    other = workspace.place_for(["/b/clip.mp4"], tmp_path)
    assert other != folder
    assert workspace.place_for(["/b/clip.mp4"], tmp_path) == other
