"""Plans that nobody searched for."""

from __future__ import annotations

import pytest
from planning_cases import (
    cluster,
    request_for,
)

from scepsy_hpc.errors import InfeasibleError
from scepsy_hpc.planning.baselines import equal_split
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.targets import Rate


def test_equal_split_is_no_better() -> None:
    """Equal GPUs for each LLM: placed, predicted without a certificate, never a lower latency."""
    best = make_plan(request_for(Rate(1.0)))
    split = equal_split(request_for(Rate()))
    assert {name: d.num_replicas for name, d in split.llms.items()} == {"a": 4, "b": 4}
    assert len(split.instances) == 8
    assert split.certificate is None
    assert split.predicted is not None
    assert best.predicted is not None
    assert (split.predicted.latency_mean_s or 0.0) >= (best.predicted.latency_mean_s or 0.0)
    with pytest.raises(InfeasibleError, match="equal split"):
        equal_split(request_for(Rate(), topology=cluster(gpus=1)))
