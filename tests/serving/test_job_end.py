"""When a job ends, and what still fits into it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.serving import job_end
from scepsy_hpc.serving.job_end import MAX_MARGIN_S, JobEnd, job_end_of
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.serving.start import Run


def run_of(plan: Plan | None = None, pretended: bool = True, **settings: float) -> Run:
    folder = RunFolder(Path("/nowhere"))
    asked = RunSettings(**settings)
    return Run(folder, folder.attempt("a-0"), plan or Plan(), asked, "host", pretended=pretended)


def end_at(end_s: float | None, now_s: float, planned_s: float | None = None) -> JobEnd:
    return JobEnd(end_s, planned_s, lambda: now_s)


def test_a_task_is_begun_only_where_a_long_one_fits() -> None:
    """By the 95th percentile of those that ended: one in twenty may be cut."""
    lengths = [1.0] * 90 + [10.0] * 10
    assert end_at(100.0, 89.0).has_room(lengths)
    assert not end_at(100.0, 91.0).has_room(lengths)
    assert end_at(100.0, 98.0).has_room([1.0] * 99 + [1000.0])


def test_while_few_have_ended_the_plan_is_asked_too() -> None:
    """The first to end are the short ones."""
    assert not end_at(100.0, 60.0, planned_s=50.0).has_room([1.0] * 5)
    assert end_at(100.0, 60.0, planned_s=50.0).has_room([1.0] * 50)
    assert end_at(100.0, 60.0).has_room([])
    assert not end_at(100.0, 101.0).has_room([])


def test_without_a_limit_there_is_always_room() -> None:
    """Nobody waits for the end of one's own machine."""
    assert end_at(None, 1e12).has_room([1e9])
    assert not end_at(None, 1e12).is_over()
    assert [end_at(100.0, now_s).is_over() for now_s in (99.0, 100.0)] == [False, True]


def test_slurm_s_own_word_goes_before_what_was_asked_for() -> None:
    """With time kept to end in order."""
    now_s = job_end.time.time()
    found = job_end_of(run_of(time_limit_s=60.0), {"SLURM_JOB_END_TIME": f"{now_s + 7200:.0f}"})
    assert found.end_s == pytest.approx(now_s + 7200 - MAX_MARGIN_S, abs=2.0)


@pytest.mark.parametrize("told", [{}, {"SLURM_JOB_END_TIME": "unknown"}])
def test_what_was_asked_for_counts_from_the_job_s_start(told: dict[str, str]) -> None:
    """Which is that of its process, where it has one; of a short job a part is kept."""
    began_s = psutil.Process().create_time()
    found = job_end_of(run_of(pretended=False, time_limit_s=36000.0), told)
    assert found.end_s == pytest.approx(began_s + 36000.0 - MAX_MARGIN_S, abs=1.0)
    short = job_end_of(run_of(time_limit_s=60.0), told)
    assert short.end_s == pytest.approx(job_end.time.time() + 42.0, abs=5.0)


def test_a_job_without_a_word_of_its_end_has_none() -> None:
    """Neither Slurm's nor the user's."""
    assert job_end_of(run_of(), {}).end_s is None


def test_the_plan_s_simulated_figure_goes_before_the_predicted_one() -> None:
    """As everywhere: simulation keeps the p95."""
    simulated = Figures(how="simulated", latency_p95_s=4.0)
    predicted = Figures(how="predicted", latency_p95_s=3.0)
    both = Plan(simulated=simulated, predicted=predicted)
    assert job_end_of(run_of(both), {}).planned_s == 4.0
    assert job_end_of(run_of(Plan(predicted=predicted)), {}).planned_s == 3.0
