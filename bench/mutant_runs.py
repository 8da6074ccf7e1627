"""Runs a module's tests on one mutant after the other: a fork each, in a copy of the checkout."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "demo-results")
MIN_TIMEOUT_S, TIMES_LONGER, UNCHANGED_TIMEOUT_S = 10.0, 6.0, 600.0
# Plugins are imported before pytest looks for them, which is no matter here.
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
# Linux: what a test leaves running becomes ours, so that we can end it.
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Job:
    """One module of a checkout and its tests; ``scratch`` is for the copies."""

    root: Path
    scratch: Path
    module: str
    tests: tuple[str, ...]

    @property
    def text(self) -> str:
        """The module as it is."""
        return (self.root / self.module).read_text(encoding="utf-8")


class Place:
    """Where one process tries mutants.

    What the tests import is imported here once, except the module and what imports it: each try
    is a fork that imports only those. The copy is first on PYTHONPATH and the working directory,
    so a process that a test starts meets the mutant, too.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = Path(tempfile.mkdtemp(dir=job.scratch))
        self._tree, self._log = self._folder / "tree", self._folder / "log"
        self._imported = self._folder / "imported"
        # Each text has its own time of change, or Python would take another one's bytecode.
        self._ticks = itertools.count(int(time.time()) - 10_000_000)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._copy()
        sys.path.insert(0, str(self._tree))
        paths = filter(None, (str(self._tree), os.environ.get("PYTHONPATH")))
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        self.unchanged_s = self._without_mutant()

    def outcome(self, mutated: str) -> str:
        """`survived`, `killed` or `timeout`."""
        limit_s = max(MIN_TIMEOUT_S, TIMES_LONGER * self.unchanged_s)
        status = self._run(mutated, limit_s)
        if self._files() != self._intact:
            # A mutant may remove or overwrite what it finds.
            self._copy()
        return "timeout" if status is None else "killed" if status else "survived"

    def _without_mutant(self) -> float:
        """Seconds of the tests on the module as it is, which they must pass."""
        # The first run writes bytecode and says what to import; the second is as mutants' are.
        for _ in range(2):
            started = time.monotonic()
            status = self._run(ast.unparse(ast.parse(self._job.text)), UNCHANGED_TIMEOUT_S)
            took_s = time.monotonic() - started
            if status != 0:
                said = self._log.read_text(encoding="utf-8", errors="replace")
                raise SystemExit(f"{said}\n{self._job.module}: its tests fail without a mutant")
            self._import(json.loads(self._imported.read_text(encoding="utf-8")))
        self._intact = self._files()
        return took_s

    def _copy(self) -> None:
        shutil.rmtree(self._tree, ignore_errors=True)
        shutil.copytree(self._job.root, self._tree, ignore=LEFT_OUT, symlinks=True)
        self._intact = self._files()
        os.chdir(self._tree)

    def _files(self) -> set[tuple[str, int, int]]:
        """All files but the module and bytecode: size and time of change."""
        found = set()
        for folder, _, names in os.walk(self._tree):
            if not folder.endswith("__pycache__"):
                for path in (Path(folder, name) for name in names):
                    seen = path.lstat()
                    found.add((str(path), seen.st_size, seen.st_mtime_ns))
        mine = str(self._tree / self._job.module)
        return {one for one in found if one[0] != mine}

    def _run(self, text: str, timeout_s: float) -> int | None:
        """Exit status of the tests with that text as the module; None when they took too long."""
        path, tick = self._tree / self._job.module, next(self._ticks)
        path.write_text(text, encoding="utf-8")
        os.utime(path, (tick, tick))
        pid = os.fork()
        if pid == 0:
            self._test()
        deadline = time.monotonic() + timeout_s
        status = None
        while status is None and time.monotonic() < deadline:
            time.sleep(0.01)
            ended, found = os.waitpid(pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if ended else None
        _end_children()
        return status

    def _test(self) -> None:
        """In the fork: run the tests, write down what they imported, end at once."""
        status = 1
        try:
            os.setsid()
            with open(os.devnull) as nothing, self._log.open("w") as log:
                for stream, number in ((nothing, 0), (log, 1), (log, 2)):
                    os.dup2(stream.fileno(), number)
            here = f"--basetemp={self._folder / 'tmp'}"
            status = int(pytest.main([*OPTIONS, here, *self._job.tests]))
            self._imported.write_text(json.dumps(list(sys.modules)), encoding="utf-8")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            # No cleaning up: threads of a broken test would be waited for.
            os._exit(status)

    def _import(self, names: Sequence[str]) -> None:
        """Import what the tests did, but neither what needs the module nor the tests' own files."""
        apart = dependents(self._tree, self._job.module)
        package = Path(self._job.module).parts[0]
        local = {path.stem for path in (self._tree / "tests").rglob("*.py")} | {"tests"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                top = name.partition(".")[0]
                if name not in apart and (top == package or top not in local):
                    with contextlib.suppress(Exception):
                        importlib.import_module(name)
        assert not apart & set(sys.modules), "imported before the mutant is there"


def _end_children() -> None:
    """End whatever a run left behind, and wait for it."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.001)


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def dependents(tree: Path, module: str) -> set[str]:
    """The module and all of its package that imports it, directly or not, as dotted names."""
    needs: dict[str, set[str]] = {}
    for path in (tree / Path(module).parts[0]).rglob("*.py"):
        name = _dotted(path.relative_to(tree))
        # A module's own folders are imported before it.
        needs[name] = {name.rpartition(".")[0]}
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                needs[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                needs[name] |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    found = {_dotted(Path(module))}
    while more := {name for name, needed in needs.items() if needed & found} - found:
        found |= more
    return found
