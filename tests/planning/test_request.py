"""What a plan is asked for: rates and targets that make sense."""

from __future__ import annotations

import pytest
from planning_cases import (
    FLOW,
    request_for,
)

from scepsy_hpc.errors import InputError
from scepsy_hpc.planning.make_plan import make_plan
from scepsy_hpc.planning.targets import Deadline, Rate, Target


@pytest.mark.parametrize(
    ("target", "rate", "message"),
    [
        (Rate(), None, "has no rate"),
        (Rate(), -1.0, "at least 1e-06"),
        (Rate(1e-320), None, "at least 1e-06"),
        (Rate(2.0), 5.0, "a rate of its own"),
        (Rate(float("nan")), None, "at least 1e-06"),
        (Deadline(0, 10.0), None, "at least 1"),
        (Deadline(10, 0.0), None, "greater than 0"),
    ],
)
def test_bad_targets(target: Target, rate: float | None, message: str) -> None:
    """Targets without sense are refused by value."""
    with pytest.raises(InputError, match=message):
        make_plan(request_for(target, workflows=[(FLOW, rate)]))
