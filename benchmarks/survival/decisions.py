"""What must hold of the registry after kills while versions are trained, scored and promoted or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.survival.farm import Farm
from benchmarks.survival.invariants import Finding, tracking_at
from tasks import tracking
from tasks.errors import MosisError
from tasks.promotion import ledger


def count_decisions(farm: Farm) -> dict[str, int]:
    records = ledger.read_records(farm.workspace)
    promoted = sum(record.promotes for record in records)
    return {"promoted": promoted, "refused": len(records) - promoted}


def inspect_decisions(farm: Farm, champions: Sequence[str]) -> list[Finding]:
    """champions: those that were seen, in order. Each took the place of the one before by a decision, each version was
    decided about once, and no package is registered twice."""
    try:
        records = ledger.read_records(farm.workspace)
    except MosisError as error:
        return [Finding("torn", f"a decision cannot be read: {str(error)[-200:]}")]
    found = []
    promoted = {record.challenger for record in records if record.promotes}
    for before, version in pairwise(champions):
        if version not in promoted:
            found.append(Finding("torn", f"the champion changed from {before} to {version}, which nobody decided"))
    for version, count in Counter(record.challenger for record in records).items():
        if count > 1:
            found.append(Finding("doubled", f"version {version} was decided about {count} times"))
    found += [
        Finding("hung", f"the decision about version {record.challenger} was not carried out")
        for record in records
        if record.state != ledger.DONE
    ]
    with tracking_at(farm):
        versions = tracking.connect(farm.workspace).search_model_versions(f"name = '{tracking.REGISTERED_NAME}'")
    for count in Counter(version.tags.get("package_sha256") for version in versions).values():
        if count > 1:
            found.append(Finding("doubled", f"one package is {count} versions of the registry"))
    return found
