"""Proportions of a step: what memory and cores allow."""

from __future__ import annotations

import pytest

from scepsy_hpc.bundles.roofline import proportions, read_times_s
from scepsy_hpc.formats.parallelism import GIB


def test_reading_weights_takes_size_over_bandwidth() -> None:
    """61 GiB at 3.35 TB/s: 19.6 ms on one H100, a quarter of it on each of four."""
    one = read_times_s("h100_sxm", 1, 61.02, 262_144)
    four = read_times_s("h100_sxm", 4, 61.02, 262_144)
    assert one is not None
    assert four is not None
    assert one[0] == pytest.approx(61.02 * GIB / 3.35e12)
    assert four[0] == pytest.approx(one[0] / 4)
    assert read_times_s("unheard_of", 1, 61.02, 262_144) is None
    assert read_times_s("h100_sxm", 1, None, 262_144) is None


def test_a_mixture_prefills_with_the_experts_it_wakes() -> None:
    """An eighth of the experts: prefill is cheaper than a dense model's, reading all is not."""
    dense = proportions("h100_sxm", 60.0, 1e5, 1.0, None)
    mixture = proportions("h100_sxm", 60.0, 1e5, 1.0, 1 / 8)
    assert len(dense.divided) == 4
    assert len(mixture.divided) == 5
    assert mixture.divided[0] + mixture.divided[4] == pytest.approx(dense.divided[0])
    assert mixture.divided[1] < 0.3 * dense.divided[1]
