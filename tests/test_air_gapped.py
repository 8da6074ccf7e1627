"""Wheels for a node without network: packed, split, checked, joined, installed; what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "bench" / "gpu"


def make_wheel(
    folder: Path, name: str, version: str = "1.0", requires: tuple[str, ...] = ()
) -> Path:
    """A wheel with one module of 2.5 MB that does not compress."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "answer = 42\n")
        archive.writestr(f"{name}/payload.bin", os.urandom(2_500_000))
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def script(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    interpreter = ["bash"] if name.endswith(".sh") else [sys.executable]
    return subprocess.run(
        [*interpreter, str(SCRIPTS / name), *map(str, arguments)],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def pack(tmp_path):
    """A pack of one small wheel in parts of 1 MB, fetched without a network."""
    wheel = make_wheel(tmp_path / "index", "tinyengine", requires=("not-there>=2",))
    done = script(
        *("pack_wheels.sh", "-s", 1, tmp_path / "pack", "tinyengine==1.0"),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(wheel.parent),
    )
    assert done.returncode == 0, done.stderr
    assert "3 parts of at most 1 MB" in done.stdout
    return tmp_path / "pack"


def test_packed_wheel_arrives_whole(tmp_path, pack):
    """What was split is joined, checked, and importable from the target; requirements stay out."""
    assert all(part.stat().st_size <= 1_000_000 for part in (pack / "parts").iterdir())
    done = script("join_wheels.sh", pack, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    code = "import tinyengine as t, importlib.metadata as m; print(t.answer, m.version(t.__name__))"
    seen = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split() == ["42", "1.0"]
    assert f"export PYTHONPATH={tmp_path / 'site'}" in done.stdout


def test_missing_part_is_named(tmp_path, pack):
    """With a part still under way nothing is installed, and the part is named."""
    (pack / "parts" / "tinyengine-1.0-py3-none-any.whl.part001").unlink()
    done = script("join_wheels.sh", pack, tmp_path / "site")
    assert done.returncode == 1
    assert "missing: parts/tinyengine-1.0-py3-none-any.whl.part001\n" in done.stderr
    assert "1 of 3 parts are not here yet" in done.stderr
    assert not any((tmp_path / "site").iterdir())


def test_damaged_part_is_refused(tmp_path, pack):
    """A part that changed on the way is named and nothing is installed."""
    part = pack / "parts" / "tinyengine-1.0-py3-none-any.whl.part002"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    done = script("join_wheels.sh", pack, tmp_path / "site")
    assert done.returncode == 1
    assert "part002: FAILED" in done.stdout + done.stderr
    assert not any((tmp_path / "site").iterdir())


def test_pack_is_not_written_over(pack):
    """A second pack into the same folder is refused: parts of two would mix."""
    done = script("pack_wheels.sh", pack, "tinyengine==1.0")
    assert (done.returncode, "holds a pack already" in done.stderr) == (2, True)


def test_missing_requirements_are_listed(tmp_path):
    """Listed is what is absent or too old, also by an extra; not what a wheel brings."""
    engine = make_wheel(
        tmp_path,
        "tinyengine",
        requires=(
            "old>=2",
            "there<3",
            "kernels[fast]==1.0",
            "absent ; python_version > '3.11'",
            "unneeded ; python_version < '3.0'",
        ),
    )
    kernels = make_wheel(tmp_path, "kernels", requires=("speed>1 ; extra == 'fast'",))
    freeze = tmp_path / "freeze.txt"
    freeze.write_text("old==1.9\nThere==2.5\n")
    done = script(
        *("missing_requirements.py", kernels, engine),
        *("--installed", freeze, "--python-version", "3.12"),
    )
    assert done.returncode == 1, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "absent  # tinyengine",
        "old>=2  # tinyengine",
        "speed>1  # kernels",
    ]
