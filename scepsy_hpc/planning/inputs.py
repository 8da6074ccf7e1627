"""Files a plan is made from: named in it with role and digest, and found again by them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scepsy_hpc.bundles.library import find_bundles
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import sha256_file
from scepsy_hpc.formats.bundle import Bundle, load_bundle
from scepsy_hpc.formats.plan import InputRole, Plan, PlanInput
from scepsy_hpc.formats.span_parts import sha256_of_spans
from scepsy_hpc.formats.spans import Span, load_spans, spans_of_workflow


def input_of(role: InputRole, path: Path, workflow: str | None = None) -> PlanInput:
    """A file as a plan names it. Raises InputError where it is gone."""
    # Absolute: `scepsy report` looks for it from the results folder of a later day.
    path = path.absolute()
    return PlanInput(role=role, workflow=workflow, path=str(path), sha256=_digest(role, path))


def _digest(role: InputRole, path: Path) -> str:
    return sha256_of_spans(path) if role == "spans" else sha256_file(path)


def bundles_of(plan: Plan, profiles: Path | None = None) -> list[Bundle]:
    """All bundles below ``profiles``, else those that the plan names. Raises InputError."""
    if profiles is not None:
        return find_bundles(profiles)
    paths = _paths(plan, "profile")
    if not paths:
        raise InputError("plan: inputs: names no profiles; give them with --profiles")
    return [load_bundle(path.parent) for path in paths]


def spans_of(plan: Plan, files: Mapping[str, Path] | None = None) -> dict[str, list[Span]]:
    """Traced runs of each workflow in ``files``, else in those that the plan names.

    Raises InputError.
    """
    found = {}
    for name in (workflow.name for workflow in plan.workflows):
        paths = [files[name]] if files else _paths(plan, "spans", name)
        if not paths:
            raise InputError(f"plan: inputs: names no spans of {name}; give them with --spans")
        spans = [span for path in paths for span in load_spans(path)]
        found[name] = spans_of_workflow(spans, name)
    return found


def _paths(plan: Plan, role: InputRole, workflow: str | None = None) -> list[Path]:
    """Files of a role, unchanged since the plan was made from them. Raises InputError."""
    named = [item for item in plan.inputs if (item.role, item.workflow) == (role, workflow)]
    for item in named:
        if not Path(item.path).is_file():
            raise InputError(f"{item.path}: is gone; the plan was made from it (inputs)")
        if _digest(role, Path(item.path)) != item.sha256:
            raise InputError(
                f"{item.path}: has changed since the plan was made from it (inputs.sha256)"
            )
    return [Path(item.path) for item in named]
