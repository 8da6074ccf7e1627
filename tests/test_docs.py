"""What the pages say can be made again, and what they link to is there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for d in ("docs", "bench", "profiles") for p in ROOT.glob(f"{d}/*.md")),
    ]
)


def _paragraphs(page: Path) -> list[str]:
    return re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file or folder that exists."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target) and not target.startswith("#"):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_every_table_of_figures_names_its_command() -> None:
    """The paragraph above each table of docs/accuracy.md has the command and the day."""
    paragraphs = _paragraphs(ROOT / "docs" / "accuracy.md")
    tables = [i for i, text in enumerate(paragraphs) if text.startswith("|")]
    assert len(tables) >= 4
    for i in tables:
        made = re.search(r"`python (bench/\w+\.py)[^`]*` on \d{4}-\d\d-\d\d", paragraphs[i - 1])
        assert made, paragraphs[i - 1]
        assert (ROOT / made[1]).is_file()


def test_every_bench_is_listed() -> None:
    """bench/README.md names each script and module of the folder."""
    listed = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    for script in (ROOT / "bench").glob("*.py"):
        assert script.name in listed


def _predictor(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    for name in ("predictor", "held_out"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import predictor

    return predictor


def test_accuracy_page_shows_the_committed_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/accuracy.md is made of bench/predictor.json and of nothing else."""
    figures = json.loads((ROOT / "bench" / "predictor.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert _predictor(monkeypatch).page_of(figures) == page
    (goals,) = (one for one in figures["tables"] if one["title"] == "Against the goals")
    assert {row[0] for row in goals["rows"]} == {
        goal.what for goal in _predictor(monkeypatch).GOALS
    }
    assert re.fullmatch(r"[0-9a-f]{7,40}", figures["commit"])


def test_committed_figures_are_what_the_bench_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out errors of one bundle, measured anew, are those that are committed.

    When this fails the predictor has changed: run `python bench/predictor.py --markdown`.
    """
    predictor = _predictor(monkeypatch)
    misses, left_out = predictor.measure(predictor.shipped_bundles("Llama-3.1-70B, vllm unknown"))
    assert not left_out
    rows = predictor.bundle_table(misses)["rows"]
    assert len(rows) == 3
    figures = json.loads(predictor.FIGURES.read_text(encoding="utf-8"))
    (shown,) = (one["rows"] for one in figures["tables"] if one["title"] == "By bundle")
    for row in rows:
        (same,) = (cells for cells in shown if cells[:2] == row[:2])
        assert [float(cell) for cell in same[2:]] == pytest.approx(
            [float(cell) for cell in row[2:]], abs=0.25
        )


def test_readme_shows_the_committed_runs() -> None:
    """The tables of real runs and of replica groups are those of bench/*.json, row by row."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    runs = json.loads((ROOT / "bench" / "real_vllm.json").read_text(encoding="utf-8"))["runs"]
    for number, run in enumerate(runs, start=1):
        mean, p95 = run["mean latency"], run["p95 latency"]
        row = (
            f"| {number} | {mean['measured']:.2f} s | {100 * mean['pipeline_error']:+.1f} % | "
            f"{100 * mean['simulation_error']:+.1f} % | {p95['measured']:.2f} s | "
            f"{100 * p95['simulation_error']:+.1f} % |"
        )
        assert row in page
    cases = json.loads((ROOT / "bench" / "queueing.json").read_text(encoding="utf-8"))["rows"]
    for load in sorted({case["utilisation"] for case in cases}):
        mine = [case for case in cases if case["utilisation"] == load]
        kept = [sum(case[key] for case in mine) for key in ("call_met", "run_p95_met")]
        assert f"| {100 * load:.0f}% | {len(mine)} | {kept[0]} | {kept[1]} |" in page


def test_the_glossary_says_where_each_noun_lives() -> None:
    """Every module of the glossary exists and defines the name that stands beside it."""
    rows = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    homes = [m for row in rows if (m := re.fullmatch(r"\|.*\| `([\w/]+\.py)` `(\w+)` \|", row))]
    assert len(homes) >= 50
    for home in homes:
        text = (ROOT / "scepsy_hpc" / home[1]).read_text(encoding="utf-8")
        defined = re.search(rf"^(?:(?:async )?def |class )?{home[2]}\b(?: =|:|\()", text, re.M)
        assert defined, f"docs/glossary.md: {home[1]} defines no {home[2]}"


def test_room_shows_the_committed_figures() -> None:
    """docs/room.md says what bench/room.json says, and the bounds that the code keeps."""
    from scepsy_hpc.serving.log_room import HEAD_PART, MOST_LOG_BYTES, TAIL_PART
    from scepsy_hpc.serving.span_log import MOST_WAITING_BYTES, PART_BYTES

    page = (ROOT / "docs" / "room.md").read_text(encoding="utf-8")
    figures = json.loads((ROOT / "bench" / "room.json").read_text(encoding="utf-8"))
    for row in figures["spans"]:
        line = (
            f"| {row['workflow']} | {row['raw_bytes_a_span']:.0f} "
            f"| {row['packed_bytes_a_span']:.0f} | {row['raw_mib_a_million_calls']} MiB "
            f"| {row['packed_mib_a_million_calls']} MiB |"
        )
        assert line in page
    assert f"{figures['result_bytes']} bytes" in page
    assert f"at {PART_BYTES // 2**20} MiB it becomes a part" in page
    assert figures["part_mib"] == PART_BYTES // 2**20
    most_mib = MOST_LOG_BYTES // 2**20
    assert f"past {most_mib} MiB" in page
    assert (HEAD_PART * most_mib, TAIL_PART * most_mib) == (1, 7)
    assert f"({MOST_WAITING_BYTES // 2**20} MiB)" in page
