"""Tables for the terminal: unknown is a dash, columns only where there is something to show."""

from __future__ import annotations

import pytest
from rich.console import Console

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.report.comparison import Comparison, Row
from scepsy_hpc.report.doctor import Finding
from scepsy_hpc.report.tables import comparison_table, findings_parts, number, pct, signed_pct

FIGURE = Row(
    workflow="rag",
    metric="mean latency",
    unit="s",
    measured=4.0,
    pipeline=5.0,
    simulation=None,
    pipeline_error=0.25,
)


def text_of(*rows: Row) -> str:
    """The table of a comparison as a wide terminal shows it."""
    made = Comparison(
        rows=rows,
        llms=(),
        measured={"rag": Figures()},
        pace={},
        notes=(),
        flags=(),
        explanation="",
    )
    console = Console(width=160)
    with console.capture() as capture:
        console.print(comparison_table(made))
    return capture.get()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(None), "-"),
        (number(0.0, "s"), "0 s"),
        (number(1234.5, "s"), "1.23e+03 s"),
        (pct(None), "-"),
        (pct(0.256), "26 %"),
        (signed_pct(None), "-"),
        (signed_pct(-0.1), "-10.0 %"),
        (signed_pct(0.25), "+25.0 %"),
    ],
)
def test_figures_carry_unit_and_sign(shown, expected):
    """An unknown figure is a dash, never a zero."""
    assert shown == expected


def test_a_comparison_of_one_workflow_names_it_in_the_title():
    """Figures in the order pipeline, simulation, measured, errors; no column without content."""
    text = text_of(FIGURE)
    assert "Predicted and measured: rag" in text
    assert "noise" not in text
    assert text.split("mean latency")[1].split() == ["5", "s", "-", "4", "s", "+25.0", "%", "-"]


def test_noise_and_workflows_get_columns_when_there_are_any():
    """Two workflows stand in a column of their own, and so does the noise floor."""
    other = Row(workflow="sum", metric="mean latency", unit="s", measured=1.0, noise=0.1)
    text = text_of(FIGURE, other)
    assert "workflow" in text
    assert "noise" in text
    assert text.split("sum")[1].split()[-2:] == ["10", "%"]


def test_what_is_missing_has_its_fix():
    """A thing that is there takes one line; one that is missing says for what, and the fix."""
    there = Finding(what="MPS", state="ok", detail="/bin/mps", needed_for="shares")
    gone = Finding(what="MPS", state="missing", detail="no", needed_for="shares", fix="get it")
    assert len(findings_parts([there])) == 1
    assert [line.split(": ", 1)[1] for line in findings_parts([gone])] == ["no", "shares", "get it"]
