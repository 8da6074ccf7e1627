"""The project's two lists of dependencies, and what it says about them."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_and_pyproject_agree():
    """environment.yml asks for what pyproject asks for, with the same lower bounds."""
    wanted = {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["workflows"]}
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    found = {e for e in [*listed, *pip] if isinstance(e, str)} - {"pip", "-e ."}
    assert found == {*wanted, f"python{PROJECT['requires-python']}"}


def test_every_dependency_says_why():
    """docs/dependencies.md has one line for each dependency, and none for what is gone."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(spec for specs in extras.values() for spec in specs)]
    names = {re.split(r"[<>=~\[ ]", spec)[0] for spec in wanted}
    rows = (ROOT / "docs" / "dependencies.md").read_text().splitlines()
    explained = {m[1] for row in rows if (m := re.match(r"\| `([\w.-]+)` \|", row))}
    assert explained == names


def test_no_registry_address_or_local_path():
    """No tracked text names a package registry's host or a path of the machine it was made on."""
    forbidden = re.compile(r"files\.pythonhosted|pypi\.org/simple|deb\.debian\.org|/root/")
    for pattern in ("*.toml", "*.yml", "*.yaml", "*.md", "Makefile", "*.sh", "*.py", ".ci/run"):
        for path in ROOT.rglob(pattern):
            inside = path.relative_to(ROOT)
            if any(p.startswith(".venv") for p in inside.parts) or path == Path(__file__):
                continue
            found = forbidden.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{inside}: {found[0] if found else ''}"
