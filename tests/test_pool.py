"""One outcome per item, whatever happens to the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.pool import WorkerDied, count_workers, map_unordered
from tasks.process import _has_ended


def work(item: int) -> int:
    """Top level, so that other processes can import it. 3 fails, 5 takes its process down."""
    if item == 3:
        raise ValueError("three")
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_no_items_give_nothing() -> None:
    assert list(map_unordered(work, [], 0, "work")) == []


def test_in_this_process_a_failure_is_its_items_alone() -> None:
    outcomes = list(map_unordered(work, [1, 3, 4], 1, "work"))
    assert [outcome.value for outcome in outcomes] == [1, None, 16]
    with pytest.raises(ValueError, match="three"):
        outcomes[1].get()


def test_a_process_that_dies_costs_its_own_item_and_no_other() -> None:
    outcomes = sorted(map_unordered(work, [1, 3, 5, 6], 2, "work"), key=lambda outcome: outcome.index)
    assert [outcome.item for outcome in outcomes] == [1, 3, 5, 6]
    assert [outcome.value for outcome in outcomes] == [1, None, None, 36]
    assert isinstance(outcomes[1].error, ValueError)
    assert isinstance(outcomes[2].error, WorkerDied)
    assert "out of memory" in str(outcomes[2].error)


def test_any_executor_can_be_given() -> None:
    with ThreadPoolExecutor(3) as executor:
        outcomes = list(map_unordered(work, [1, 2, 3], 3, "work", executor=executor))
    assert {outcome.item: outcome.value for outcome in outcomes} == {1: 1, 2: 4, 3: None}


def test_workers_follow_the_cores_that_this_process_may_use() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert count_workers(0, 1000) == cores
    assert count_workers(8, 3) == 3
    assert count_workers(4, 0) == 1


def sleep_and_tell(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


_PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from test_pool import sleep_and_tell
from tasks.pool import map_unordered
list(map_unordered(sleep_and_tell, [sys.argv[2]] * 2, 2, "sleep"))
"""
"""No `if __name__ == "__main__"`: a worker that imported it would start workers of its own."""

_SLOW_START = """
import os, sys, time
if any("spawn_main" in word for word in sys.orig_argv):
    open(os.path.join(os.environ["TOLD"], str(os.getpid())), "w").close()
    time.sleep(2)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process that its parent has died")
@pytest.mark.parametrize("when", ["while they work", "before they are ready"])
def test_workers_die_with_the_process_that_started_them(tmp_path: Path, when: str) -> None:
    script, told = tmp_path / "program.py", tmp_path / "told"
    script.write_text(_PROGRAM)
    told.mkdir()
    environment = {**os.environ, "TOLD": str(told)}
    if when == "before they are ready":
        (tmp_path / "sitecustomize.py").write_text(_SLOW_START)
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(script), str(Path(__file__).parent), str(told)]
    with subprocess.Popen(command, env=environment) as process:
        _wait_until(lambda: len(os.listdir(told)) == 2)
        process.kill()
    _wait_until(lambda: not any(_is_alive(int(pid)) for pid in os.listdir(told)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux'")
def test_a_parent_that_nobody_has_waited_for_has_ended() -> None:
    """A zombie still has an entry: taken for alive, its children would live on for ever."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        assert not _has_ended(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet waited for
        assert _has_ended(child.pid)
        child.wait()
    assert _has_ended(child.pid)


def _wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited a minute")


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
