"""The certificate: gap by its definition, and none without a bound."""

from __future__ import annotations

import math

import pytest

from scepsy_hpc.planning.search.certificate import certify, relative_gap, sentence


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


def test_gap_is_of_the_best_and_given_up_of_the_plan() -> None:
    """A plan on fewer GPUs gives up its distance to the best; the gap is the best one's."""
    certificate = certify("latency_mean_s", 12.0, 10.0, constant=10.0, best=11.0)
    assert (certificate.value, certificate.bound) == (22.0, 20.0)
    assert certificate.gap == pytest.approx(1 / 20)
    assert certificate.given_up_pct == pytest.approx(100 / 21)
    assert not certificate.proved


@pytest.mark.parametrize(("best", "proved"), [(10.0, True), (10.000001, True), (10.01, False)])
def test_proved_is_a_gap_of_rounding(best: float, proved: bool) -> None:
    """Costs in whole steps of the model leave a gap of their own; more is not proved."""
    assert certify("latency_mean_s", best, 10.0).proved == proved


@pytest.mark.parametrize(
    ("value", "best", "said"),
    [
        (10.0, 10.0, ["no plan", "replicas", "better than 10 s", "which is this plan"]),
        (11.0, 10.0, ["which the best plan found reaches", "10% above the best", "fewer GPUs"]),
        (10.5, 10.5, ["can be better than 10 s", "5.00% from that", "not proved"]),
        (10.5, 10.2, ["2.00% from that", "not proved", "2.9% above the best"]),
    ],
)
def test_sentence_says_relative_to_what(value: float, best: float, said: list[str]) -> None:
    """Proved, given up, not proved, both; always the form of plan and the model."""
    words = sentence(certify("latency_mean_s", value, 10.0, best=best))
    assert all(part in words for part in ["by the predicted mean latency", *said])
    assert ("not proved" in words) == ("not proved" in said)


def test_sentence_of_a_throughput() -> None:
    """A throughput is below its best, in runs a second."""
    words = sentence(certify("throughput_rps", 9.0, 10.0, best=10.0))
    assert "better than 10 runs/s" in words
    assert "10% below the best" in words
