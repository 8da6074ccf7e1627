"""Commands whose output is odd: their own task may fail, and nothing else happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from agent_cases import run_tasks, write_agent

from scepsy_hpc.formats.limits import MAX_RESULT_BYTES
from scepsy_hpc.formats.workflow import Agent
from scepsy_hpc.tracing.agents import command
from scepsy_hpc.tracing.agents.pool import AgentOutcome

AGENT = """
    import json, sys
    task = json.load(sys.stdin)
    what, out = task["what"], sys.stdout
    if what == "noise":
        for _ in range(100):
            out.write("x" * 999_999 + "\\n")
        print(json.dumps("the end"))
    elif what == "one line":
        out.write("x" * 100_000_000)
    elif what == "large":
        print(json.dumps("x" * 50_000_000))
    elif what == "brackets":
        print('["' * 100_000)
    elif what == "deep":
        print("[" * 600 + "]" * 600)
    elif what == "digits":
        print("1" * 5000)
    elif what == "nan":
        print("NaN")
    elif what == "binary":
        out.buffer.write(bytes(range(256)) * 10)
    elif what == "surrogate":
        print('"\\\\ud800"')
    elif what == "separators":
        print(json.dumps("a\\u2028b\\u0085c\\x00", ensure_ascii=False))
    elif what == "no memory":
        raise MemoryError
    elif what == "stderr":
        sys.stderr.write("y" * 3_000_000 + "\\nlast words")
        sys.exit(1)
"""


def outcome(folder: Path, what: str, log: Path | None = None) -> AgentOutcome:
    write_agent(folder, AGENT, "main")
    agent = Agent(command=(sys.executable, "main.py"), folder=str(folder))
    [found] = run_tasks(agent, {"what": what}, log_path=log)
    return found


@pytest.mark.parametrize(
    ("what", "result"),
    [
        ("noise", "the end"),
        ("surrogate", "\ud800"),
        ("separators", "a\u2028b\u0085c\x00"),
    ],
)
def test_odd_output_that_ends_with_a_result(tmp_path: Path, what: str, result: str) -> None:
    """100 MB before it, half a surrogate pair, other ends of lines inside."""
    found = outcome(tmp_path, what)
    assert (found.error, found.result) == (None, result)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("one line", f"of at most {MAX_RESULT_BYTES} bytes"),
        ("large", f"of at most {MAX_RESULT_BYTES} bytes"),
        ("brackets", "does not end with one line of JSON"),
        ("deep", "nested deeper than 128"),
        ("digits", "Exceeds the limit"),
        ("nan", "NaN is not JSON"),
        ("binary", "does not end with one line of JSON"),
    ],
)
def test_output_that_is_no_result(tmp_path: Path, what: str, says: str) -> None:
    """The task fails for its record, in one short line."""
    found = outcome(tmp_path, what)
    assert found.failure == "record"
    assert says in found.error
    assert len(found.error) < 1000


def test_a_command_out_of_memory_is_not_to_blame(tmp_path: Path) -> None:
    """Python says so in the last line of its traceback."""
    assert outcome(tmp_path, "no memory").failure == "infra"


def test_of_much_stderr_the_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the log as in the error."""
    monkeypatch.setattr(command, "MAX_STDERR_BYTES", 1000)
    found = outcome(tmp_path, "stderr", tmp_path / "log")
    assert found.error.endswith("ended with code 1: last words")
    assert found.failure == "agent"
    assert (tmp_path / "log").stat().st_size < 2000


def test_a_log_that_cannot_be_written_costs_no_result(tmp_path: Path) -> None:
    """A full disk, say; here a folder is in its place."""
    (tmp_path / "log").mkdir()
    assert outcome(tmp_path, "surrogate", tmp_path / "log").error is None
