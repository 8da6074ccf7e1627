"""What a plan was made from, found again by the paths and digests under its ``inputs``."""

from __future__ import annotations

from pathlib import Path

from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import sha256_file
from scepsy_hpc.formats.bundle import Bundle, load_bundle
from scepsy_hpc.formats.plan import Plan, PlanInput
from scepsy_hpc.formats.points import POINTS_FILE
from scepsy_hpc.formats.spans import Span, load_spans, spans_of_workflow


def bundles_of(plan: Plan, profiles: Path | None = None) -> list[Bundle]:
    """All bundles below ``profiles``, else those that the plan names. Raises InputError."""
    if profiles is not None:
        return find_bundles(profiles)
    paths = [_unchanged(i) for i in plan.inputs if Path(i.path).name == POINTS_FILE]
    if not paths:
        raise InputError("plan: inputs: names no profiles; give them with --profiles")
    return [load_bundle(path.parent) for path in paths]


def spans_of(plan: Plan) -> dict[str, list[Span]]:
    """Traced runs of each workflow of the plan. Raises InputError."""
    paths = [_unchanged(i) for i in plan.inputs if i.path.endswith(".jsonl")]
    if not paths:
        raise InputError("plan: inputs: names no spans; give them with --spans")
    spans = [span for path in paths for span in load_spans(path)]
    return {w.name: spans_of_workflow(spans, w.name) for w in plan.workflows}


def _unchanged(item: PlanInput) -> Path:
    path = Path(item.path)
    if not path.is_file():
        raise InputError(f"{path}: is gone; the plan was made from it (inputs)")
    if sha256_file(path) != item.sha256:
        raise InputError(f"{path}: has changed since the plan was made from it (inputs.sha256)")
    return path
