"""The smallest plan of a workflow."""

from __future__ import annotations

import pytest
from planning_cases import (
    FLOW,
    cluster,
    two_bundles,
)

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.planning.one_each import one_each


def test_one_each_for_tracing() -> None:
    """Before anything is known: one smallest instance per LLM, whole GPUs, placed apart."""
    plan = one_each(FLOW, two_bundles(), cluster())
    assert {name: d.num_replicas for name, d in plan.llms.items()} == {"a": 1, "b": 1}
    assert all(d.tp_degree == 1 and d.gpu_share_pct == 100 for d in plan.llms.values())
    with pytest.raises(InfeasibleError, match="does not fit"):
        one_each(FLOW, two_bundles(), cluster(gpus=1))
