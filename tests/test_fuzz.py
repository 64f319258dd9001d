"""A short fuzz run over every reader, and whether it sees what none may do. benchmarks/fuzz.py has the long one."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

from benchmarks import fuzz
from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.readers import READERS
from tests import fuzz_toy

EACH = 20


def test_damaged_input_is_read_or_refused_by_every_reader() -> None:
    tasks = [(name, seed) for name in READERS for seed in range(EACH)]
    rows = {name: fuzz.empty_row(name) for name in READERS}
    for name, result in fuzz.run(READERS, tasks, max_seconds=60):
        fuzz.count(rows[name], result)
    assert [finding for row in rows.values() for finding in row["findings"]] == []
    assert all(row["read"] + row["set_aside"] == row["inputs"] == EACH for row in rows.values())
    assert min(sum(row[key] for row in rows.values()) for key in ("read", "set_aside")) > 50


def test_what_a_reader_may_not_do_is_found_and_the_run_goes_on() -> None:
    found = dict(fuzz.run(fuzz_toy.READERS, [(name, 4) for name in fuzz_toy.EXPECTED], max_seconds=6))
    assert list(found) == list(fuzz_toy.EXPECTED)
    for name, (kind, words) in fuzz_toy.EXPECTED.items():
        assert (found[name].kind, name) == (kind, name), found[name]
        assert found[name].finding is None if words is None else re.search(words, found[name].finding or ""), name
    assert not found["refuse"].read
    assert found["refuse"].reasons == ["it is broken: copy it again"]


def test_a_seed_means_the_same_damage(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    READERS["youtube_vis"].make(tmp_path / "made")
    outcomes = []
    for turn in ("a", "b"):
        chance = random.Random(7)
        for number in range(20):
            folder = tmp_path / f"{turn}{number}"
            shutil.copytree(tmp_path / "made" / "0", folder)
            done = damage(folder, chance, pipes=True)
            content = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.jp*") if p.is_file()}
            outcomes.append((turn, done, content))
    assert [one[1:] for one in outcomes[:20]] == [one[1:] for one in outcomes[20:]]
    assert len({str(done) for _, done, _ in outcomes}) > 15
