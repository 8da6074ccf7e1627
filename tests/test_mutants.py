"""bench/mutants.py: plants bugs where there is behaviour, and says truly whether tests noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

BENCH = Path(__file__).parents[1] / "bench"

THING = '''
"""A module to plant bugs in."""
import shutil

def add(a, b):
    return a + b

def untested(a, b):
    return a - b

def clean(folder, really):
    if really:
        shutil.rmtree(folder)

def count(n):
    while n > 0:
        n -= 1
    return n

if __name__ == "__main__":
    print(add(4, 2) * 10)
'''
TESTS = """
import subprocess, sys
from pathlib import Path
from toy import thing

def test_leaves_a_process_behind(tmp_path):
    code = "import time; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code, "MARK"], start_new_session=True)

def test_data_is_there_and_stays():
    folder = Path(__file__).parent / "data"
    assert (folder / "kept").exists()
    assert thing.clean(folder, False) is None

def test_counts_down():
    assert thing.count(3) == 0

def test_program(tmp_path):
    command = [sys.executable, "-m", "toy.thing"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).stdout == b"60\\n"
"""


@pytest.fixture
def mutations(monkeypatch):
    """The module beside the script."""
    monkeypatch.syspath_prepend(str(BENCH))
    import mutations

    return mutations


@pytest.fixture
def mutants(mutations):
    """The script as a module."""
    import mutants

    return mutants


def changes(found) -> set[str]:
    return {f"{site.operator}: {site.before} -> {site.after}" for site in found}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b >= c", {"comparison: a < b >= c -> a <= b >= c"}),
        ("x is not y", {"comparison: x is not y -> x is y"}),
        ("a // b - c", {"arithmetic: a // b -> a % b"}),
        ("min(a, b)", {"min/max: min(a, b) -> max(a, b)"}),
        ("a and b or c", {"and/or: a and b -> a or b"}),
        ("not a", {"not: not a -> a"}),
        ("a[1:]", {"slice: 1: -> :", "constant: 1 -> 2"}),
        ("f('x', True, 2.5)", {"text: 'x' -> ''", "constant: True -> False"}),
        ("f(x if y else z)", {"branches: x if y else z -> z if y else x"}),
        ("[x for x in y if z]", {"condition: for x in y if z -> for x in y if not z"}),
        ("a.b = c", {"deletion: a.b = c -> pass"}),
        ("a += b", {"deletion: a += b -> pass", "arithmetic: a += b -> a -= b"}),
        ("if a:\n  b", {"condition: if a: b -> if not a: b", "deletion: b -> pass"}),
        ("if a:\n  b\nelse:\n  c", {"branches: if a: b else: ... -> if a: c else: ..."}),
        ("for a in b:\n  break", {"break/continue: break -> continue"}),
        ("def f():\n  return a", {"return: return a -> return None"}),
    ],
)
def test_what_is_changed(source, expected, mutations):
    """Each operator makes its change of a piece of code."""
    assert expected <= changes(mutations.sites(source))


def test_what_is_no_behaviour_is_left_alone(mutations):
    """Nothing is changed in words, types, imports and what only checks ourselves."""
    source = '''
        """A docstring."""
        from a import b
        __all__ = ["c"]
        if TYPE_CHECKING:
            import d
        @dataclass(frozen=True)
        class C:
            """Another."""
            e: Literal["f"]
            def g(self, h: "i") -> "j":
                assert self.k > 0, "l"
                raise InputError(f"m {self.n}: " "o")
        P = TypeVar("P")
    '''
    assert not mutations.sites(dedent(source))


def test_a_change_is_the_module_with_that_change_alone(mutations):
    """The mutated text differs from the module in one place, and the place is named."""
    (site,) = (s for s in mutations.sites("def f(a):\n    return (a +\n        1)\n") if s.at == 8)
    assert site.mutated == "def f(a):\n    return a - 1"
    assert (site.line, site.column, site.function, site.code) == (2, 13, "f", "return (a +")


def test_samples_repeat_and_seeds_differ(mutations, mutants):
    """One seed draws the same sites each time; two seeds draw each site at most once."""
    found = mutations.sites("\n".join(f"f({n})" for n in range(100)))
    first, second = (mutants.sample(found, [seed], 20, "m.py") for seed in (1, 2))
    assert first == mutants.sample(found, [1], 20, "m.py") != second
    both = mutants.sample(found, [1, 2], 20, "m.py")
    assert len(both) == len(set(both)) > 20
    assert set(both) == {*first, *second}
    assert mutants.sample(found, [1], 1000, "m.py") == found


def plant(root: Path) -> None:
    """A checkout of one module and tests that miss one function."""
    files = {"toy/__init__.py": "", "toy/thing.py": THING, "tests/data/kept": ""}
    files["tests/test_thing.py"] = TESTS.replace("MARK", str(root))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def run(root: Path, *options: str) -> tuple[int, str, dict]:
    """Exit status, what it printed, and the JSON document of a run on all sites."""
    # Ten seconds for a loop without end are too long for a test.
    code = (
        "import mutant_runs, mutants, sys; mutant_runs.MIN_TIMEOUT_S = 3; sys.exit(mutants.main())"
    )
    out = root / "found.json"
    done = subprocess.run(
        [sys.executable, "-c", code, "--root", root, "--module", "toy/thing.py", "-o", out],
        env={"PYTHONPATH": str(BENCH)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, json.loads(out.read_text())


def test_bugs_are_found_where_tests_look_and_only_there(tmp_path):
    """What nothing tests survives; all else is noticed, also by what a test starts.

    `add` is tested through another process only. Two mutants never end and one removes the tests'
    data: that changes nothing for the others. A survivor named as changing nothing is not counted,
    and no process is left.
    """
    plant(tmp_path)
    named = {"file": "toy/thing.py", "function": "clean", "operator": "deletion", "at": 0}
    named |= {"code": "shutil.rmtree(folder)", "before": "shutil.rmtree(folder)", "after": "pass"}
    (tmp_path / "bench").mkdir()
    entries = [named | {"same": "for this test"}]
    (tmp_path / "bench" / "mutants_equivalent.json").write_text(json.dumps(entries))

    status, printed, document = run(tmp_path)
    (found,) = document["modules"]
    assert [(c["function"], c["operator"], c["same"]) for c in found["survivors"]] == [
        ("untested", "return", None),
        ("untested", "arithmetic", None),
        ("clean", "condition", None),
        ("clean", "deletion", "for this test"),
    ], printed
    assert (found["num_mutants"], found["num_killed"], found["num_timeouts"]) == (19, 15, 2)
    assert (found["num_same"], found["killed_pct"]) == (1, pytest.approx(100 * 15 / 18))
    assert status == 1
    apart = printed.split("1 change nothing, as named")
    assert "toy/thing.py:9:12 arithmetic: a - b -> a + b" in apart[0]
    assert "toy/thing.py:13:9 deletion: shutil.rmtree(folder) -> pass" in apart[1]
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert not [words for words in left if words and words[-1] == str(tmp_path)]
