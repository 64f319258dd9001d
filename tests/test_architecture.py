"""The house rules hold: floors, one name for stage, file, task and key, dependencies that DVC knows, light imports."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from tasks import params, versioning
from tasks.sources import DATASETS

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

NOT_SHAPING = {
    "tasks/errors.py": "messages",
    "tasks/progress.py": "bars",
    "tasks/process.py": "cores, threads and process signals",
    "tasks/pool.py": "spreads work, whose results do not depend on it",
    "tasks/cluster.py": "where work runs",
    "tasks/tracking/__init__.py": "records what was done",
    "tasks/versioning.py": "names the data for the record",
}
"""Code that a stage uses and that cannot change its outputs: a change there re-runs nothing."""


def stages() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def imported_files(path: Path) -> set[Path]:
    """Files of this repository that `path` imports by name, at the top or inside functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    if path == ROOT / "tasks" / "sources" / "__init__.py":  # it imports them by name, each where it is asked for
        names.update(f"tasks.sources.{module}" for module in DATASETS.values())
    found: set[Path] = set()
    for name in names:
        parts = name.split(".")
        if parts[0] not in ("tasks", "models"):
            continue
        place = ROOT.joinpath(*parts)
        found.update(file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())
    return found


def used_files(stage: str) -> set[str]:
    """All that tasks/<stage>.py imports, directly or not. params.py counts, but not the methods' settings that it
    imports: stages that use a method name its code themselves.
    """
    waiting, seen = [ROOT / "tasks" / f"{stage}.py"], set()
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in seen or not path.read_text().strip() or name in NOT_SHAPING:
            continue
        seen.add(name)
        if name != "tasks/params.py":
            waiting.extend(imported_files(path))
    return seen


@pytest.mark.parametrize("stage", params.STAGES)
def test_dvc_knows_all_the_code_of_a_stage(stage: str) -> None:
    deps = stages()[stage]["deps"]
    uncovered = {
        name for name in used_files(stage) if not any(name == dep or name.startswith(f"{dep}/") for dep in deps)
    }
    assert not uncovered, f"dvc.yaml: add to the deps of {stage}"


@pytest.mark.parametrize("stage", params.STAGES)
def test_dvc_names_no_code_that_a_stage_does_not_use(stage: str) -> None:
    code = [dep for dep in stages()[stage]["deps"] if dep.startswith(("tasks/", "models"))]
    used = used_files(stage)
    unused = {dep for dep in code if not any(name == dep or name.startswith(f"{dep}/") for name in used)}
    assert not unused, f"dvc.yaml: remove from the deps of {stage}"


def test_a_stage_is_a_file_a_task_a_key_and_a_dvc_stage() -> None:
    from flows.pipeline import STAGE_TASKS

    assert list(stages()) == list(params.STAGES)
    assert [task.name for task in STAGE_TASKS] == list(params.STAGES)
    keys = [*params.STAGES, *params.BESIDE_STAGES]
    assert [field.name for field in fields(params.Params)] == keys
    assert list(yaml.safe_load((ROOT / "params.yaml").read_text())) == keys
    tracked = {key.split(".")[0] for stage in stages().values() for key in stage["params"]}
    assert tracked == set(params.STAGES), "a key beside the stages would re-run them"
    for stage in params.STAGES:
        assert (ROOT / "tasks" / f"{stage}.py").is_file()
        assert stages()[stage]["cmd"] == f"python -m tasks {stage}"


def test_every_stage_output_is_read_or_is_a_result() -> None:
    """A misspelt path in deps would make DVC demand a file that no stage writes."""
    written = [path for stage in stages().values() for path in outputs(stage)]
    for name, stage in stages().items():
        for dep in stage["deps"]:
            known = any(dep == out or dep.startswith(f"{out}/") for out in written)
            assert known or (ROOT / dep).exists(), f"{name}: {dep}"


def test_no_output_outlives_a_change_of_parameters() -> None:
    """DVC's `persist: true` hands the old checkpoint to the next run, which then "resumes" at its end: no training, and
    new figures for old weights. The checkpoint is no output, and carries its own fingerprint.
    """
    text = (ROOT / "dvc.yaml").read_text()
    assert "persist" not in text
    assert "checkpoint" not in text


def test_a_wheel_carries_the_templates_of_workspaces(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        for name in ("params.yaml", "dvc.yaml"):
            assert wheel.read(f"flows/templates/{name}") == (ROOT / name).read_bytes()


def outputs(stage: dict) -> list[str]:
    entries = [*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def test_the_committed_dvc_config_is_the_one_of_workspaces() -> None:
    assert (ROOT / ".dvc" / "config").read_text() == versioning.CONFIG


def test_dvc_is_named_in_one_file_and_mlflow_in_one_package() -> None:
    owners: dict[str, set[str]] = {"dvc": set(), "mlflow": set(), "prefect": set()}
    for path in [*ROOT.glob("flows/**/*.py"), *ROOT.glob("tasks/**/*.py"), *ROOT.glob("models/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                owners.get(name.split(".")[0], set()).add(path.relative_to(ROOT).as_posix())
    assert owners["dvc"] == {"tasks/versioning.py"}
    known = {"tasks/pyfunc_model.py", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tasks/tracking/*.py"))}
    assert owners["mlflow"] <= known, "pyfunc_model.py is what a registered model carries"
    assert owners["prefect"] <= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("flows/*.py")}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "lint-imports", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code to seed violations in."""
    for name in ("flows", "tasks", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_import_contracts_hold_and_notice_a_violation(tree: Path) -> None:
    clean = lint_imports(tree)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    with open(tree / "models" / "interface.py", "a") as file:
        file.write("\nfrom tasks import errors\n")
    with open(tree / "tasks" / "pairs.py", "a") as file:
        file.write("\nimport prefect\nfrom tasks import ingest\n")
    seeded = lint_imports(tree)
    assert seeded.returncode != 0
    broken = [line for line in seeded.stdout.splitlines() if line.endswith("BROKEN")]
    assert len(broken) == 3, seeded.stdout


def test_parameters_and_the_command_line_are_light() -> None:
    """`mosis --help`, a misspelt key and a missing file answer at once: nothing heavy is imported before."""
    code = "import sys, flows, tasks, models, flows.cli, tasks.params; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "prefect", "mlflow", "dvc", "cv2", "pandas", "av"} & set(done.stdout.split())
    assert not heavy


def test_the_console_script_exists() -> None:
    done = subprocess.run([BIN / "mosis", "--help"], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in ("init", "run", "demo", "status"))
