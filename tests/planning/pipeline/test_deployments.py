"""Who shares a deployment: names, and what two workflows that share one both allow."""

from __future__ import annotations

import pytest
from planning_cases import calls, demand, workflow

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.pipeline.deployments import deployments_of, pipeline_of

LLM = Llm(model="org/model")


def test_names_of_deployments() -> None:
    """Two aliases of one workflow never share; a clash of names is resolved by the workflow's."""
    flows = [
        workflow("x", {"a": LLM, "b": LLM}),
        workflow("y", {"a": Llm(model="org/other"), "b": LLM}),
    ]
    assert deployments_of(flows) == {"x": {"a": "a", "b": "b"}, "y": {"a": "y-a", "b": "b"}}


def test_shared_limits_must_meet() -> None:
    """Workflows that share an LLM but allow different TP degrees are refused by key."""
    flows = [
        workflow("x", {"a": Llm(model="m", tp_degrees=(1,))}),
        workflow("y", {"a": Llm(model="m", tp_degrees=(2, 4))}),
    ]
    needs = {name: demand({"a": calls(1.0)}) for name in "xy"}
    with pytest.raises(InputError, match="tp_degrees"):
        pipeline_of(flows, needs, {"x": 1.0, "y": 1.0})
