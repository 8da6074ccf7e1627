"""The certificate: gap by its definition, and none without a bound."""

from __future__ import annotations

import math

import pytest

from scepsy_hpc.planning.search.certificate import certify, relative_gap


def test_gap_is_relative_to_the_bound() -> None:
    """|value - bound| / |bound|, for costs above and throughputs below their bound."""
    assert certify("latency_mean_s", 11.0, 10.0).gap == pytest.approx(0.1)
    assert certify("throughput_rps", 9.0, 10.0).gap == pytest.approx(0.1)


def test_constant_is_added_to_both() -> None:
    """Tool time is the same for all plans: it shrinks the gap and hides nothing."""
    certificate = certify("latency_mean_s", 11.0, 10.0, constant=10.0)
    assert (certificate.value, certificate.bound) == (21.0, 20.0)
    assert certificate.gap == pytest.approx(0.05)


def test_rounding_is_no_gap() -> None:
    """Sums of the same numbers in another order are the same value."""
    assert relative_gap(0.1 + 0.2, 0.3) == 0.0


def test_no_bound_is_no_certificate() -> None:
    """A plan without a finite bound is not certified."""
    with pytest.raises(ValueError, match="no finite bound"):
        certify("latency_mean_s", 1.0, -math.inf)
