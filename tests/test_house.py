"""The rooms of the package: each imports only from rooms above it."""

import ast
from pathlib import Path

import scepsy_hpc

PACKAGE = Path(scepsy_hpc.__file__).parent
# In the order the data walks through them.
ROOMS = (
    *(
        "__init__",
        "errors",
        "files",
        "metrics",
        "formats",
        "cluster",
        "tracing",
        "bundles",
        "engines",
    ),
    *("profiling", "planning", "serving", "report", "demo", "cli", "__main__"),
)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules += names if node.module == "scepsy_hpc" else [node.module]
    parts = [module.split(".") for module in modules]
    return {p[1] for p in parts if p[0] == "scepsy_hpc" and len(p) > 1 and p[1] in ROOMS}


def test_every_room_is_known():
    """A new module or folder of the package is put into the order of rooms on purpose."""
    found = {room_of(p) for p in PACKAGE.rglob("*.py")}
    assert found <= set(ROOMS)


def test_rooms_import_only_from_above():
    """No module imports from a room below its own."""
    for path in PACKAGE.rglob("*.py"):
        own = ROOMS.index(room_of(path))
        below = {room for room in imported_rooms(path) if ROOMS.index(room) > own}
        assert not below, f"{path.relative_to(PACKAGE)} imports from {sorted(below)}"
