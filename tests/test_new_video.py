"""New video from the inbox to the library, with everything real: Prefect's server, DVC, git, MLflow on sqlite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import drift, inbox, library, tracking
from tasks.clips import ClipReader, open_clips
from tasks.files import read_json
from tasks.workspace import configure
from tests import kill_points
from tests.kill_points import POINTS
from tests.service_toy import copy_workspace, drop, git, make_home, make_workspace
from tests.store_toy import KEY, SECRET, serve_s3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def made(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("made") / "workspace", champion=True)


@pytest.fixture(scope="module")
def prefect_server(home: Path) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def workspace(made: Path, tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return copy_workspace(made, tmp_path / "workspace")


def run(folder: Path) -> Any:
    from flows.new_video import new_video

    return new_video(str(folder))


def test_a_video_that_arrives_is_labelled_versioned_and_tracked(workspace: Path) -> None:
    drop(workspace / "inbox", "; rm -rf ~.mp4", 1)
    done = run(workspace)
    (entry,) = done.taken
    assert done.describe() == "1 labelled with version 1"
    folder = workspace / "library" / entry.video_id
    assert library.done_videos(workspace) == [entry.video_id]
    assert entry.source.endswith("inbox/; rm -rf ~.mp4")
    assert (entry.frames, entry.clips) == (6, 1)
    assert (entry.model["name"], entry.model["version"]) == ("mosis", "1")
    assert entry.label_free["instances_per_frame"] is not None
    assert entry.params["export"]["score_threshold"] == 0.001
    (clip,) = open_clips(folder / "clips")
    with ClipReader(clip.path) as reader:
        assert reader.info.source_sha256 == entry.sha256
    coco, ytvis = (read_json(folder / "labels" / name) for name in ("coco.json", "ytvis.json"))
    assert len(coco["images"]) == 6
    assert len(coco["annotations"]) == entry.annotations > 0
    assert coco["annotations"][0]["model_version"] == "mosis/1"
    assert coco["annotations"][0]["thresholds"]["score"] == 0.001
    assert len(ytvis["videos"]) == 1

    client = tracking.connect(workspace)
    (found,) = client.search_runs([client.get_experiment_by_name("mosis").experiment_id], "tags.stage = 'new-video'")
    assert found.data.tags["video_ids"] == entry.video_id
    assert found.data.tags["model_version"] == "1"
    assert found.data.metrics["batch.frames"] == 6
    assert found.info.status == "FINISHED"

    page = workspace / "library" / "report" / "index.html"
    assert entry.video_id in page.read_text()
    assert "data:image/jpeg" in page.read_text()
    assert git(workspace, "status", "--porcelain", "library") == ""
    written = page.stat().st_mtime_ns

    again = run(workspace)
    assert again.describe() == "nothing new"
    assert page.stat().st_mtime_ns == written
    assert len(client.search_runs([found.info.experiment_id], "tags.stage = 'new-video'")) == 1
    assert list((workspace / "inbox").iterdir()) == [workspace / "inbox" / "; rm -rf ~.mp4"]


def events_of(url: str) -> list[dict[str, Any]]:
    """Of drift, as the server keeps them: it writes what it has been sent some seconds later, many at once."""
    deadline = time.monotonic() + 60
    while not (found := read_events(url)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def read_events(url: str) -> list[dict[str, Any]]:
    body = json.dumps({"filter": {"event": {"name": ["mosis.drift"]}}}).encode()
    request = urllib.request.Request(f"{url}/events/filter", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["events"]
        return found


def test_drift_is_an_event_a_tag_a_metric_and_a_line(workspace: Path) -> None:
    from prefect.settings import get_current_settings

    from flows import new_video as flow_module
    from flows import summary
    from tasks.errors import StorageError

    configure(workspace, {"service.drift.min_frames": 6})
    # The champion was sure and steady on its held-out video, which an untrained network is on nothing.
    tracking.tag_version(workspace, "1", {"label_free_mean_score": "0.99", "label_free_empty_share": "0.0"})
    drop(workspace / "inbox", "a.mp4", 1)

    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("dead")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_module, "emit", refuse)
        run(workspace)
    assert len(drift.find_untold(workspace)) == 1
    run(workspace)  # nothing is new but what the server has not been told
    run(workspace)
    assert drift.find_untold(workspace) == []
    (event,) = events_of(str(get_current_settings().api.url))
    (verdict,) = drift.read_verdicts(workspace)
    assert "mean_score" in [one.figure for one in verdict.alerts or ()]
    assert event["payload"]["message"] == verdict.describe()
    found = tracking.connect(workspace).get_run(verdict.run_id)
    assert "mean_score" in found.data.tags["drift"].split(",")
    assert found.data.metrics["drift.alerts"] == len(verdict.alerts or ())
    assert found.data.metrics["drift.reference.mean_score"] == 0.99
    (line,) = [line for line in summary.describe_service(workspace) if line.startswith("drift")]
    assert "mean_score" in line
    assert "1 videos of 6 frames" in line


def test_the_same_content_is_done_once_under_any_name(workspace: Path) -> None:
    first = drop(workspace / "inbox", "first.mp4", 1)
    run(workspace)
    head = git(workspace, "rev-parse", "HEAD")
    (workspace / "inbox" / "copies").mkdir()
    (workspace / "inbox" / "copies" / "second.mp4").write_bytes(first.read_bytes())
    done = run(workspace)
    assert [Path(name).name for name in done.same] == ["second.mp4"]
    assert done.taken == []
    assert git(workspace, "rev-parse", "HEAD") == head
    assert run(workspace).same == []  # its content is known without reading it again


def test_an_empty_inbox_and_one_without_a_champion_complete(workspace: Path, made: Path, tmp_path: Path) -> None:
    assert run(workspace).describe() == "nothing new"
    bare = make_workspace(tmp_path / "bare", champion=False)
    video = drop(bare / "inbox", "a.mp4")
    done = run(bare)
    assert done.describe() == "1 waiting"
    assert video.exists()
    assert not (bare / "library").exists()


@pytest.mark.filterwarnings("ignore:Logger 'prefect")
def test_a_poisoned_video_is_set_aside_and_the_rest_go_on_in_order(workspace: Path) -> None:
    drop(workspace / "inbox", "1.mp4", 1)
    (workspace / "inbox" / "2.mp4").write_bytes(b"no video at all")
    drop(workspace / "inbox", "3.mp4", 3)
    done = run(workspace)
    assert [Path(entry.source).name for entry in done.taken] == ["1.mp4", "3.mp4"]
    (one,) = library.read_rejected(workspace).values()
    assert Path(one.source).name == "2.mp4"
    assert "\n" not in one.reason
    assert run(workspace).describe() == "nothing new"

    configure(workspace, {"ingest.max_side": 128})  # what it was tried with is another now
    assert len(run(workspace).rejected) == 1
    drop(workspace / "inbox", "2.mp4", 2)  # and so is its content
    assert [Path(entry.source).name for entry in run(workspace).taken] == ["2.mp4"]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_between_any_two_steps_is_healed_by_the_next_run(workspace: Path, point: str) -> None:
    video = drop(workspace / "inbox", "a.mp4", 5)
    command = [sys.executable, "-m", "tests.kill_points", str(workspace), point]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    is_done = point == "after git commit"
    assert len(library.done_videos(workspace)) == is_done
    for folder in (workspace / "library").glob("[0-9a-f]*/"):  # what is there is whole
        library.read_entry(folder)
        json.loads((folder / "labels" / "summary.json").read_text())

    done = run(workspace)
    assert (len(done.taken), len(done.same)) == (0, 1) if is_done else (1, 0)
    (one,) = library.done_videos(workspace)
    assert not list((workspace / "library").glob(".tmp-*"))
    assert video.exists()
    assert git(workspace, "log", "--format=%s").splitlines()[0].startswith(f"Video {one}")
    assert len(git(workspace, "log", "--format=%s", "--", f"library/{one}.dvc").splitlines()) == 1


def test_a_video_that_kills_its_decoder_costs_that_video(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import new_video as flow_module

    monkeypatch.setattr(flow_module, "RETRY_S", (0.1,))
    monkeypatch.setattr(flow_module.intake, "take_in", kill_points.die_of_broken_names)
    configure(workspace, {"service.retries": 1})
    drop(workspace / "inbox", "1-broken.mp4", 1)
    drop(workspace / "inbox", "2.mp4", 2)
    done = run(workspace)
    assert [Path(one.source).name for one in done.rejected] == ["1-broken.mp4"]
    assert "its process died" in done.rejected[0].reason
    assert [Path(entry.source).name for entry in done.taken] == ["2.mp4"]
    assert (workspace / "deaths").read_text() == "xx"


def test_a_store_that_fails_leaves_the_videos_and_fails_the_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.errors import StorageError

    configure(workspace, {"service.retries": 0})
    place = Path(os.environ["HOME"], ".local/share/mosis/dvc")
    place.parent.mkdir(parents=True)
    place.write_text("a file where the store should be")
    drop(workspace / "inbox", "a.mp4", 1)
    with pytest.raises(StorageError, match="dvc push"):
        run(workspace)
    assert library.done_videos(workspace) == []
    assert library.read_rejected(workspace) == {}
    place.unlink()
    assert len(run(workspace).taken) == 1


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU, on which it can be used")
def test_a_model_that_cannot_be_used_here_is_no_fault_of_the_videos(workspace: Path) -> None:
    from tasks.errors import ModelError

    configure(workspace, {"service.retries": 0, "train.device": "cuda"})
    drop(workspace / "inbox", "a.mp4", 1)
    with pytest.raises(ModelError, match=r"models:/mosis/1 cannot be used on cuda"):
        run(workspace)
    assert library.read_rejected(workspace) == {}
    configure(workspace, {"train.device": "cpu"})
    assert len(run(workspace).taken) == 1


def test_a_name_is_no_template(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect fills in names of task runs: such a file would stop the inbox, or show our environment."""
    from prefect import get_client

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    names = ["{0}.mp4", "cam {left}.mp4", "take {1.mp4", "{batch.worker.call.__globals__[contextlib].os.environ}.mp4"]
    for number, name in enumerate(names):
        drop(workspace / "inbox", name, number)
    assert [Path(entry.source).name for entry in run(workspace).taken] == names
    with get_client(sync_client=True) as client:
        shown = {one.name for one in client.read_task_runs(limit=100)}
    assert set(names) <= shown
    assert SECRET not in str(shown)


def test_a_video_that_is_another_when_its_turn_comes_waits(workspace: Path, tmp_path: Path) -> None:
    from tasks import intake

    video = drop(workspace / "inbox", "a.mp4", 1)
    (listed,) = inbox.list_arrivals(str(workspace / "inbox"))
    with open(video, "ab"), pytest.raises(inbox.MovingError), intake.local_file(listed, workspace):
        pass
    with intake.local_file(listed, workspace) as file:
        assert file.read_bytes() == video.read_bytes()
    secret = tmp_path / "secret"
    video.rename(secret)
    video.symlink_to(secret)
    with pytest.raises(inbox.MovingError, match="it changed since it was listed"), intake.local_file(listed, workspace):
        pass
    video.unlink()
    with pytest.raises(inbox.MovingError), intake.local_file(listed, workspace):
        pass


def test_many_at_once_are_done_in_order_and_memory_is_flat(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import new_video as flow_module

    real, sizes = flow_module.take_in_one, []

    def measured(batch: Any, arrival: Any, result: Any) -> None:
        real(batch, arrival, result)
        sizes.append(kill_points.worker_bytes())

    monkeypatch.setattr(flow_module, "take_in_one", measured)
    names = [f"{number:02d}.mp4" for number in range(20)]
    for number, name in enumerate(names):
        drop(workspace / "inbox", name, 100 + number)
    run(workspace)
    entries = library.done_entries(workspace)
    assert [Path(entry.source).name for entry in entries] == names
    commits = git(workspace, "log", "--reverse", "-20", "--format=%s").splitlines()
    assert [line.split()[1].rstrip(":") for line in commits] == [entry.video_id for entry in entries]
    assert 0 < max(sizes[10:]) < 1.1 * max(sizes[1:6])


def test_an_inbox_in_s3_is_taken_in_and_no_key_of_it_stays_here(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    with serve_s3() as url:
        environment = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": url}
        for name, value in {**environment, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        content = drop(tmp_path, "a.mp4", 7).read_bytes()
        for name in (f"in/{'a' * 300}.mp4", "in/; rm -rf ~.mp4"):
            store.pipe(f"bucket/{name}", content)
        store.pipe("bucket/in/broken.mp4", b"no video at all")
        configure(workspace, {"service.inbox": "s3://bucket/in"})
        done = run(workspace)
        assert len(done.taken) == len(done.same) == len(done.rejected) == 1
        assert done.taken[0].source.startswith("s3://bucket/in/")
        assert run(workspace).describe() == "nothing new"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert not list((workspace / ".mosis").glob("intake/*"))  # copies go with their video
    for path in workspace.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".dvc", ".db", ".yaml"):
            assert SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize("shown", ["s3://bucket/../../x.mp4", "/inbox/; rm -rf ~.mp4", "/inbox/" + "a" * 300 + ".MP4"])
def test_no_name_from_outside_names_a_file_of_ours(tmp_path: Path, shown: str) -> None:
    from tasks import intake
    from tasks.sources.places import Place

    video = drop(tmp_path, "a.mp4")
    (listed,) = inbox.list_arrivals(str(tmp_path))
    (tmp_path / "workspace").mkdir()
    with intake.local_file(replace(listed, place=Place(shown, str(video))), tmp_path / "workspace") as file:
        assert file.name == f"video{Path(shown).suffix.lower()}"
        assert file.parent.parent == tmp_path / "workspace" / ".mosis" / "intake"
        assert file.read_bytes() == video.read_bytes()
    assert not list(file.parent.parent.iterdir())
