"""What a deployment runs on: engines held to curves, sizes of calls, replicas, flags."""

from __future__ import annotations

import random

import numpy as np
import pytest
from simulation_cases import MODEL, curve, plan_of, simulate_plan, single_calls

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Instance
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.simulation.arrivals import Closed
from scepsy_hpc.planning.simulation.hosts import closed_load_rps, engine_on, mean_sizes, size_of
from scepsy_hpc.planning.simulation.replicas import Size


def test_engine_is_held_to_the_curve() -> None:
    """Whatever the fit says, a closed load of the profiled calls reaches the curve's throughput."""
    rng = random.Random(2)
    lengths = [(rng.randint(50, 400), rng.randint(1, 120)) for _ in range(100)]
    mean = np.mean(lengths, axis=0)
    slow = curve((1.0, 4.0, 8.0), (1.1, 3.5, 5.0), TokenLengths(float(mean[0]), float(mean[1])))
    traced = [size_of(slow, inputs, outputs, None) for inputs, outputs in lengths]
    for sizes in (traced, mean_sizes(slow)):
        engine = engine_on(MODEL, slow, sizes)
        for k in (1, 4, 8):
            found_rps = closed_load_rps(engine, sizes, k)
            assert found_rps == pytest.approx(float(slow.server.rate_rps(k)), rel=0.02)
        assert len(engine.stretch) == 9
        assert max(engine.stretch) / min(engine.stretch) > 1.05
    outputs = [size.output_tokens for size in mean_sizes(slow)]
    assert np.mean(outputs) == pytest.approx(mean[1], abs=0.04)
    assert max(outputs) - min(outputs) <= 1


def test_sizes() -> None:
    """Work is 1 for a mean call, split as TTFT says; cached tokens need none; unknown is mean."""
    known = curve((1.0,), (0.5,), TokenLengths(100.0, 11.0), ttft_s=(0.5,))
    assert size_of(known, 100, 11, None) == Size(1.0, 100, 100, 11)
    assert size_of(known, None, None, None) == Size(1.0, 100, 100, 11)
    assert size_of(known, 200, 11, 100) == Size(1.0, 100, 200, 11)
    assert size_of(known, 300, 1, None).work == pytest.approx(0.75)
    assert size_of(known, 100, 31, None).work == pytest.approx(0.25 + 0.75 * 3.0)
    prompts = curve((1.0,), (0.5,), TokenLengths(100.0, 1.0))
    assert size_of(prompts, 250, 1, None).work == 2.5


def test_plan_says_how_many_replicas() -> None:
    """Two replicas take two calls of a second each at once; a third that is not placed is none."""
    instances = tuple(
        Instance(id=f"a{i}", llm="a", node="n", gpus=(i,), gpu_share_pct=100) for i in range(2)
    )
    runs, curves = {"w": single_calls(2)}, {"a": curve()}
    plan = plan_of("a", num_replicas=2, instances=instances)
    result = simulate_plan(plan, runs, curves, Closed(2, 2))
    assert result.per_llm["a"].num_replicas == 2
    assert result.makespan_s == pytest.approx(1.0)
    with pytest.raises(InputError, match="num_replicas: is 3, but instances list 2"):
        simulate_plan(plan_of("a", num_replicas=3, instances=instances), runs, curves, Closed(2, 2))


def test_beyond_what_is_known() -> None:
    """More calls in flight on a replica than the curve knows, or fewer, are said."""
    known = curve((2.0, 3.0), (1.0, 1.2))
    result = simulate_plan(plan_of("a"), {"w": single_calls(4)}, {"a": known}, Closed(4, 4))
    mine = [flag for flag in result.flags if flag.startswith("a: ")]
    assert mine == [
        "a: below_first_concurrency: latency is held flat below 2",
        "a: extrapolated: a replica had up to 4 calls in flight, known are 3; throughput is held "
        "beyond",
    ]
    models = {"a": MODEL}
    result = simulate_plan(
        plan_of("a"), {"w": single_calls(3)}, {"a": known}, Closed(3, 3), engine_models=models
    )
    assert not any(flag.startswith("a: ") for flag in result.flags)
