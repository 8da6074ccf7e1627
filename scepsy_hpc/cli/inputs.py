"""Workflows and spans as commands take them: ``[NAME=]FILE[@RATE]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from scepsy_hpc.cli.options import named


def load_workflows(values: tuple[str, ...]) -> list[tuple[Any, float | None]]:
    """Workflows with their rates."""
    from scepsy_hpc.formats.workflow import load_workflow

    flows = []
    for name, value in named(values, "workflow").items():
        match = re.fullmatch(r"(.+?)(?:@([^@/\\]+))?", value)
        assert match is not None
        flow = load_workflow(match[1])
        if name is not None and name != flow.name:
            raise click.UsageError(f"--workflow {name}={value}: its `name:` is {flow.name!r}")
        flows.append((flow, _rate(match[2], value)))
    return flows


def _rate(text: str | None, value: str) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise click.UsageError(f"--workflow {value}: rate {text!r} must be above 0 runs per second")
    return rate


def spans_files(values: tuple[str, ...], flows: Sequence[Any]) -> dict[str, Path]:
    """File of each workflow's spans, by the workflow's name."""
    found: dict[str, Path] = {}
    known = ", ".join(flow.name for flow in flows)
    for name, value in named(values, "spans").items():
        wanted = name or (str(flows[0].name) if len(flows) == 1 else "")
        if wanted not in {flow.name for flow in flows}:
            raise click.UsageError(f"--spans {value}: write NAME={value}; NAME is one of {known}")
        found[wanted] = Path(value)
    for flow in flows:
        if flow.name not in found:
            raise click.UsageError(f"--spans {flow.name}=FILE is missing")
    return found
