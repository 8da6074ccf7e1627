"""The house: what may import what, one home for each name, functions that fit a screen."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import scepsy_hpc

PACKAGE = Path(scepsy_hpc.__file__).parent
TESTS = Path(__file__).parent
# In the order the data walks through them.
ROOMS = (
    *("__init__", "errors", "files", "metrics", "formats", "cluster", "tracing", "bundles"),
    *("engines", "profiling", "planning", "serving", "report", "cli", "__main__"),
)
# Inside planning/, in the order of a plan; what shares a step knows nothing of each other, and
# planning's own modules stand below all of them.
PLANNING = (("curves", "search"), ("pipeline",), ("simulation",))
MAX_FUNCTION_LINES = 60
# Folders of tests that stand for an outside program, or hold what tests share.
NO_MIRROR = ("slurm", "vllm", "browser", "support", "data")


@dataclass(frozen=True, slots=True)
class Module:
    """One file of the package; ``imports`` are the modules of the package that it names.

    Imports inside functions and under TYPE_CHECKING count: they hide a circle, not undo it.
    """

    parts: tuple[str, ...]
    tree: ast.Module
    imports: frozenset[tuple[str, ...]]

    @property
    def file(self) -> str:
        """As a person names it: ``scepsy_hpc/serving/run.py``."""
        found = PACKAGE.joinpath(*self.parts)
        path = found / "__init__.py" if found.is_dir() else found.with_suffix(".py")
        return str(path.relative_to(PACKAGE.parent))

    @property
    def room(self) -> str:
        return self.parts[0] if self.parts else "__init__"


def _parts(path: Path) -> tuple[str, ...]:
    """Names below the package; a folder's `__init__` is the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _imports(tree: ast.Module, known: frozenset[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Modules that a file imports; of `from room import module`, the module and not the room."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(tuple(alias.name.split(".")), ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = tuple((node.module or "").split("."))
            wanted = [(base, (alias.name,)) for alias in node.names]
        else:
            continue
        for base, name in wanted:
            if base[0] == PACKAGE.name:
                inside = base[1:]
                yield (*inside, *name) if (*inside, *name) in known else inside


@cache
def modules() -> dict[tuple[str, ...], Module]:
    """Every module of the package by its parts."""
    paths = {_parts(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    trees = {parts: ast.parse(path.read_bytes()) for parts, path in paths.items()}
    known = frozenset(paths)
    return {
        parts: Module(parts, tree, frozenset(_imports(tree, known)) - {parts})
        for parts, tree in trees.items()
    }


def _circle(edges: Mapping[str, set[str]]) -> str:
    """A circle as `a -> b -> a`; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        # The sorter's edges lead from what is imported to what imports it.
        return " -> ".join(reversed(error.args[1]))
    return ""


def _step(module: Module) -> int:
    """How far down in planning/ a module stands."""
    inside = module.parts[1:-1] or module.parts[1:]
    steps = [i for i, names in enumerate(PLANNING) if inside and inside[0] in names]
    return steps[0] if steps else len(PLANNING)


def test_every_room_is_known():
    """A new module or folder of the package is put into the order of rooms on purpose."""
    unknown = {m.room: m.file for m in modules().values() if m.room not in ROOMS}
    assert not unknown, f"put into ROOMS, where the data meets it: {sorted(unknown.values())}"


def test_all_imports_are_absolute():
    """Imports name the module from the package on, so that one search finds all of them."""
    found = [
        f"{m.file}:{node.lineno}: a relative import; write it from {PACKAGE.name} on"
        for m in modules().values()
        for node in ast.walk(m.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not found, "\n".join(found)


def test_rooms_import_only_from_above():
    """No module imports from a room below its own."""
    found = [
        f"{m.file} imports {other.file}: {other.room} stands below {m.room}; "
        "move what both need up, or hand it in as an argument"
        for m in modules().values()
        for other in (modules()[parts] for parts in m.imports)
        if ROOMS.index(other.room) > ROOMS.index(m.room)
    ]
    assert not found, "\n".join(sorted(found))


def test_planning_imports_only_from_above():
    """curves and search stand side by side, then pipeline, simulation, planning's own modules."""
    found = []
    for m in modules().values():
        for other in (modules()[parts] for parts in m.imports):
            if m.room != "planning" or other.room != "planning" or len(m.parts) == 1:
                continue
            mine, theirs = _step(m), _step(other)
            # Two folders of one step: side by side. Planning's own modules are one step, too.
            aside = mine == theirs < len(PLANNING) and m.parts[1] != other.parts[1]
            if theirs > mine or aside:
                where = "beside" if aside else "below"
                found.append(
                    f"{m.file} imports {other.file}, which stands {where} it: "
                    "move what both need up, or say the need as a Protocol or plain numbers"
                )
    assert not found, "\n".join(sorted(found))


def test_subpackages_make_no_circle_with_their_room():
    """Inside a folder, with each subfolder seen as one thing, imports make no circle."""
    found = []
    # Rooms that hold subfolders; the package itself has its order, a subfolder its modules.
    for folder in sorted({parts[:1] for parts in modules() if len(parts) > 2}):
        depth, edges = len(folder), defaultdict(set)
        for parts, m in modules().items():
            inside = [to[depth] for to in m.imports if to[:depth] == folder and len(to) > depth]
            if parts[:depth] == folder and len(parts) > depth:
                edges[parts[depth]] |= {to for to in inside if to != parts[depth]}
        if circle := _circle(edges):
            room = "/".join((PACKAGE.name, *folder))
            found.append(f"{room}/: {circle}; move what both need into a module above them")
    assert not found, "\n".join(found)


def test_modules_import_in_no_circle():
    """No module needs itself through others, not even by an import inside a function."""
    edges = {m.file: {modules()[to].file for to in m.imports} for m in modules().values()}
    circle = _circle(edges)
    assert not circle, f"{circle}\nmove what both need into a module above them"


def _public_names(body: list[ast.stmt]) -> Iterator[str]:
    """Functions, classes and constants that a module defines at its top level."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (name for whole in targets for name in ast.walk(whole)):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    yield target.id
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _public_names(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _public_names(handler.body)


def test_each_public_name_has_one_home():
    """No two modules define the same public name: one idea, one definition."""
    homes = defaultdict(set)
    for m in modules().values():
        for name in _public_names(m.tree.body):
            if not name.startswith("_"):
                homes[name].add(m.file)
    found = [
        f"{name}: defined in {', '.join(sorted(files))}; if they are one idea keep one, "
        "else name what differs"
        for name, files in sorted(homes.items())
        if len(files) > 1
    ]
    assert not found, "\n".join(found)


def test_functions_fit_a_screen():
    """No function of the package is longer than a screen, from its `def` to its last line."""
    found = [
        f"{m.file}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}; "
        "split it where a part has a name of its own"
        for m in modules().values()
        for node in ast.walk(m.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not found, "\n".join(found)


def test_tests_mirror_the_package():
    """Each test file in a room's folder stands for the module of that name in that room."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        folders = path.relative_to(TESTS).parent.parts
        if not folders or folders[0] in NO_MIRROR:
            continue
        wanted = (*folders, path.stem.removeprefix("test_"))
        if wanted not in modules():
            module = "/".join((PACKAGE.name, *wanted))
            found.append(
                f"{path.relative_to(TESTS.parent)}: there is no {module}.py; name it after the "
                "module it tests, or put it directly into tests/"
            )
    assert not found, "\n".join(found)
