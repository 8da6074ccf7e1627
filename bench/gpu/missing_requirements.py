"""Lists what wheels require and a machine lacks: ``python missing_requirements.py WHEEL...``

Run it on the node, or anywhere with ``--installed FILE``, the output of `pip list --format=freeze`
there. What one of the wheels brings is not missing. Fetch what is listed, give those wheels too,
and run it again, until it is silent. Prints one requirement a line, each with who wants it.
"""

from __future__ import annotations

import argparse
import email
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def metadata_of(wheel: Path) -> email.message.Message:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def installed_here() -> dict[str, str]:
    """Name and version of every distribution of this Python."""
    return {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}


def installed_in(freeze: str) -> dict[str, str]:
    """The same from lines ``NAME==VERSION``."""
    pairs = (line.strip().partition("==") for line in freeze.splitlines())
    return {canonicalize_name(name): version for name, _, version in pairs if version}


def missing(
    wheels: Sequence[Path], installed: Mapping[str, str], python_version: str
) -> Iterator[tuple[Requirement, str]]:
    """Each requirement that neither the machine nor a wheel meets, and which wheel has it."""
    brought = {}
    for wheel in wheels:
        metadata = metadata_of(wheel)
        brought[canonicalize_name(metadata["Name"])] = metadata["Version"]
    wanted_extras: dict[str, set[str]] = {}
    there = {**installed, **brought}
    seen: set[tuple[str, str]] = set()
    for _ in range(2):  # the second time the extras that wheels want of each other are known
        for wheel in wheels:
            metadata = metadata_of(wheel)
            owner = canonicalize_name(metadata["Name"])
            for text in metadata.get_all("Requires-Dist") or ():
                need = Requirement(text)
                if not _applies(need, wanted_extras.get(owner, set()), python_version):
                    continue
                name = canonicalize_name(need.name)
                wanted_extras.setdefault(name, set()).update(need.extras)
                have = there.get(name)
                met = have is not None and need.specifier.contains(have, prereleases=True)
                if not met and (owner, text) not in seen:
                    seen.add((owner, text))
                    yield need, wheel.name


def _applies(need: Requirement, extras: set[str], python_version: str) -> bool:
    if need.marker is None:
        return True
    environment = default_environment() | {
        "python_version": python_version,
        "python_full_version": f"{python_version}.0",
    }
    return any(need.marker.evaluate({**environment, "extra": e}) for e in ("", *extras))


def main() -> int:
    """The command line; returns 1 while something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--installed", type=Path, help="pip list --format=freeze of the node")
    parser.add_argument("--python-version", default=f"{sys.version_info[0]}.{sys.version_info[1]}")
    options = parser.parse_args()
    installed = installed_in(options.installed.read_text()) if options.installed else None
    found = list(missing(options.wheels, installed or installed_here(), options.python_version))
    for need, wheel in found:
        extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
        print(f"{need.name}{extras}{need.specifier}  # {wheel.split('-')[0]}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
