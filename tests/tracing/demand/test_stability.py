"""How many runs would be enough: the bootstrap beside what a normal mean would need."""

from __future__ import annotations

import numpy as np
import pytest

from scepsy_hpc.tracing.demand.stability import length_text, relative_half_width, runs_needed


@pytest.mark.parametrize("cv", [0.3, 0.6])
def test_many_runs_need_what_the_normal_approximation_says(cv: float) -> None:
    """The interval of a mean is 1.96 cv / sqrt(n): 10% of it takes (19.6 cv)^2 runs."""
    drawn = np.random.default_rng(1).standard_normal((50, 400))
    needed = [runs_needed(0.4 * (1 + cv * row)) or 0 for row in drawn]
    assert np.mean(needed) == pytest.approx((19.6 * cv) ** 2, rel=0.04)


def test_few_runs_are_not_taken_for_more_than_they_are() -> None:
    """Three runs resampled underrate the variance by 2/3, and that is made up for: their sample
    variance, 4/3 of (1, 1, 3) around 5/3, asks for (1.96 / 0.1)^2 (4/3) / (5/3)^2 = 184 runs."""
    needed = runs_needed(np.array([1.0, 1.0, 3.0]))
    assert needed is not None
    assert 0.7 * 184 < needed < 1.6 * 184  # three runs' means are no bell curve


def test_the_size_of_a_share_does_not_matter_nor_more_of_the_same_runs() -> None:
    """Shares twice as large, or each run ten times, ask for about as many runs."""
    shares = np.array([0.1, 0.9, 0.2, 0.8, 0.1, 0.9])
    needed = runs_needed(shares)
    assert needed is not None
    assert runs_needed(shares / 4) == needed
    assert runs_needed(np.tile(shares, 10)) == pytest.approx(needed, rel=0.25)


def test_steady_runs_need_two() -> None:
    """Where nothing varies two runs tell it, and no fewer are said to."""
    assert runs_needed(np.array([0.5, 0.5, 0.5])) == 2


def test_what_cannot_be_told() -> None:
    """Two runs, or shares of zero, say nothing; three do."""
    assert runs_needed(np.array([])) is None
    assert runs_needed(np.array([0.4, 0.6])) is None
    assert runs_needed(np.zeros(5)) is None
    assert runs_needed(np.array([0.4, 0.5, 0.6])) is not None


def test_the_half_width_is_that_of_a_normal_mean() -> None:
    """1.96 cv / sqrt(n) of 400 runs; two runs tell nothing."""
    drawn = np.random.default_rng(2).standard_normal((50, 400))
    found = [relative_half_width(3.0 * (1 + 0.5 * row)) or 0.0 for row in drawn]
    assert np.mean(found) == pytest.approx(1.96 * 0.5 / 20.0, rel=0.04)
    assert relative_half_width(np.array([1.0, 2.0])) is None


def test_few_runs_of_unequal_length_say_so() -> None:
    """Twelve runs of cv 0.5: 28% by the normal approximation, and about 96 runs for 10%."""
    lengths_s = np.array([0.5, 1.5] * 6) * 0.958
    text = length_text(lengths_s)
    assert text is not None
    assert text.startswith("12 traced runs tell the mean length of a run within 2")
    assert "would within 10%" in text
    assert "would" not in str(length_text(np.tile(lengths_s, 20)))
    assert length_text(lengths_s[:2]) is None
