"""The drill's own judgement: its checker sees what is planted, its page is made of its figures."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DRILL = ROOT / "bench" / "drill"


@pytest.fixture
def drill(monkeypatch):
    """Imports a module of bench/drill."""
    monkeypatch.syspath_prepend(str(DRILL))
    for path in DRILL.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module


def record(name, **changes):
    """A good record of a task, with changes."""
    good = {"task_id": name, "status": "ok", "result": {"task": name, "tokens": 5}}
    return good | changes


def make_batch(folder, records, odd=None):
    """Tasks a and b, both witnessed, and these records."""
    tasks = [{"task_id": name} | ({"odd": odd} if odd else {}) for name in "ab"]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    ends = [["end", name, 1.0, 1] for name in "ab"]
    (folder / "witness.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ends))
    write_lines(folder / "results.jsonl", records)


def write_lines(path, lines):
    """Objects as JSON, one a line."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def counts(drill, folder):
    """What the checker counts, as (lost, twice, blamed, wrong)."""
    paths = [folder / name for name in ("tasks.jsonl", "results.jsonl", "witness.jsonl")]
    found = drill("checker").check(*paths)
    return found.lost, found.twice, found.blamed, found.wrong


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record("a"), record("b")], (0, 0, 0, 0)),
        ([record("a")], (1, 0, 0, 0)),
        ([record("a"), record("b"), record("a")], (0, 1, 0, 0)),
        ([record("a"), record("b", status="failed", error="died")], (0, 0, 1, 0)),
        ([record("a"), record("b", result={"task": "a", "tokens": 5})], (0, 0, 0, 1)),
        ([record("a"), record("b", result={"task": "b", "tokens": 2})], (0, 0, 0, 1)),
        ([record("a"), record("b"), {"task_id": "c"}], (0, 0, 0, 1)),
        ([record("a"), record("b"), "text"], (0, 0, 0, 1)),
    ],
    ids=["good", "lost", "twice", "blamed", "swapped", "short", "unknown", "no record"],
)
def test_the_checker_sees_what_is_planted(drill, tmp_path, records, expected):
    """Each flaw is counted once, in its own column."""
    make_batch(tmp_path, records)
    assert counts(drill, tmp_path) == expected


def test_a_record_without_a_witness_is_wrong(drill, tmp_path):
    """A result that no agent ever produced is invented."""
    make_batch(tmp_path, [record("a"), record("b")])
    write_lines(tmp_path / "witness.jsonl", [["begin", "a", 1.0, 1], ["end", "b", 1.0, 1]])
    assert counts(drill, tmp_path) == (0, 0, 0, 1)


def test_an_odd_result_may_fail_as_itself_only(drill, tmp_path):
    """NaN may be refused as the agent's or the record's, never as a fault of engines."""
    failed = [record(n, status="failed", error="NaN", error_class="record") for n in "ab"]
    make_batch(tmp_path, failed, odd="nan")
    assert counts(drill, tmp_path) == (0, 0, 0, 0)
    make_batch(tmp_path, failed, odd="nul")
    assert counts(drill, tmp_path) == (0, 0, 0, 2)
    make_batch(tmp_path, [one | {"error_class": "infra"} for one in failed], odd="nan")
    assert counts(drill, tmp_path) == (0, 0, 0, 2)


def test_what_came_after_a_successor_does_not_count(drill, tmp_path):
    """results.jsonl must be the merge: first record wins, late bytes of a predecessor are left."""
    make_batch(tmp_path, [record("a"), record("b", attempts=2)])
    first, second = (tmp_path / "results.d" / f"00000{k}.jsonl" for k in (1, 2))
    write_lines(first, [{"generation": 1, "earlier": {}}, record("a")])
    length = first.stat().st_size
    write_lines(
        second, [{"generation": 2, "earlier": {first.name: length}}, record("b", attempts=2)]
    )
    with first.open("a") as stream:
        stream.write(json.dumps(record("b")) + "\n")
    assert counts(drill, tmp_path) == (0, 0, 0, 0)
    write_lines(tmp_path / "results.jsonl", [record("a"), record("b")])
    assert counts(drill, tmp_path) == (0, 0, 0, 1)


def test_a_line_ends_at_its_newline_only(drill, tmp_path):
    """U+2028 and U+0085 in a line are part of it."""
    path = tmp_path / "lines"
    path.write_text('{"a": "x\u2028\u0085"}\n{"b": 1}\n', encoding="utf-8")
    assert drill("checker").objects_of(path) == [{"a": "x\u2028\u0085"}, {"b": 1}]


def test_the_same_seed_makes_the_same_run(drill, tmp_path):
    """Tasks and what is strange about them follow from the seed."""
    texts = []
    for number in range(2):
        folder, rng = tmp_path / str(number), random.Random("1/x")
        folder.mkdir()
        odd = drill("episode").oddities(["odd_result"] * 3, 40, rng)
        case = drill("batch_case").make_case(folder, rng, 40, 4, odd=odd)
        texts.append(case.tasks.read_text().replace(str(folder), "FOLDER"))
        assert len(odd) == 3
    assert texts[0] == texts[1]


def test_the_shim_answers_as_a_bad_disk(drill, tmp_path):
    """Locks and writes below the root fail while a file says so, and work again after."""
    shim = drill("local_faults").build_shim(tmp_path)
    for name in ("shim", "root"):
        (tmp_path / name).mkdir()
    code = """
import errno, fcntl, pathlib, sys
here = pathlib.Path(sys.argv[1])
stream = (here / "root" / "f").open("ab", buffering=0)
def ask(what):
    try:
        what()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
def three():
    return [ask(lambda: stream.write(b"x")), ask((here / "root" / "new").touch),
            ask(lambda: fcntl.flock(stream, fcntl.LOCK_SH)), ask((here / "beside").touch)]
print(three())
for flag in ("EROFS", "ENOLCK"):
    (here / "shim" / flag).touch()
    print(three())
    (here / "shim" / flag).unlink()
print(three())
"""
    env = {
        "LD_PRELOAD": str(shim),
        "DRILL_SHIM": str(tmp_path / "shim"),
        "DRILL_SHIM_ROOT": str(tmp_path / "root"),
    }
    line = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
    fine = ["done"] * 4
    assert done.stdout.splitlines() == [
        str(fine),
        str(["EROFS", "EROFS", "done", "done"]),
        str(["done", "done", "ENOLCK", "done"]),
        str(fine),
    ]


def test_what_is_left_behind_is_found(drill, tmp_path):
    """A process in a session of its own and a temporary file are both named."""
    traces = drill("traces")
    (tmp_path / "junk").touch()
    sleeper = subprocess.Popen(["sleep", "60"], env={traces.MARK: "m1"}, start_new_session=True)
    try:
        found = traces.left_behind("m1", tmp_path, traces.shared_memory(), 0.0)
    finally:
        traces.end_all("m1")
        sleeper.wait()
    assert [one.partition(" ")[0] for one in found] == ["process", "temporary"]
    assert traces.marked("m1") == []


def test_the_page_shows_the_committed_figures(drill):
    """docs/drill.md is made of bench/drill.json and of nothing else."""
    page = drill("drill_page")
    figures = json.loads((ROOT / "bench" / "drill.json").read_text(encoding="utf-8"))
    assert page.page_of(figures) == page.PAGE.read_text(encoding="utf-8")
    assert {one["kind"] for one in figures["kinds"]} <= set(page.WHAT)


def test_kinds_that_were_not_drilled_keep_their_rows(drill, tmp_path, monkeypatch):
    """One kind drilled again replaces its own row; another seed begins a new table."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    program, path = drill("drill"), tmp_path / "drill.json"
    row = {"commit": "old", "runs": 1}
    head = {"seed": 1, "tasks_a_run": 500, "took_s": 3}
    before = [row | {"kind": "kill_lead"}, row | {"kind": "orphan"}]
    problems = ["orphan (1/orphan): left", "kill_lead (1/kill_lead): lost"]
    path.write_text(json.dumps(head | {"kinds": before, "problems": problems}))
    now = head | {"kinds": [row | {"kind": "orphan", "commit": "new"}], "problems": []}
    found = program._with_other_kinds(path, now)
    assert [(one["kind"], one["commit"]) for one in found["kinds"]] == [
        ("kill_lead", "old"),
        ("orphan", "new"),
    ]
    assert (found["problems"], found["took_s"]) == (problems[1:], 6)
    assert program._with_other_kinds(path, now | {"seed": 2}) == now | {"seed": 2}
