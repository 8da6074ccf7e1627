"""Weights on node-local disk: one copy a node, whatever the number of engines and jobs.

A copy is made beside its place and renamed into it when every file has its size, so that whoever
finds it finds it whole. The lock only spares work: without it two copies are made, and one stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from scepsy_hpc.cluster.site import own_scratch, scratch_of
from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.weights import files_of_model, find_model
from scepsy_hpc.errors import InputError, RunError

WEIGHTS_FOLDER = "weights"
# Left free on the node's disk: compile caches and other users want some.
SPARE_BYTES = 2 * 2**30
CHUNK_BYTES = 16 * 2**20
COPIES_AT_ONCE = 4
LOCK_POLL_S = 0.5
# A copy, its lock, and the folder in which it is made.
_OF_COPY = re.compile(r"\.?(.+-[0-9a-f]{16})(\..+)?")


async def with_weights(config: EngineConfig) -> EngineConfig:
    """The same instance, its model the folder that it is served from on this node.

    Copies it first where the site asks for that; the event loop goes on meanwhile. Raises
    InputError where it is nowhere or has no room, RunError where a copy fails.
    """
    if config.engine != "vllm":
        return config
    given_up = threading.Event()
    try:
        return await asyncio.to_thread(_with_weights, config, given_up.is_set)
    finally:
        given_up.set()


def _with_weights(config: EngineConfig, given_up: Callable[[], bool]) -> EngineConfig:
    site = config.site
    if site.weights is None:
        return config
    source = find_model(config.model, site)
    if source is None:
        return config
    if site.weights.stage:
        source = stage(source, own_scratch(scratch_of(site)) / WEIGHTS_FOLDER, given_up)
    return replace(config, model=str(source))


def stage(source: Path, root: Path, given_up: Callable[[], bool] = lambda: False) -> Path:
    """A whole copy of ``source`` below ``root``; the one that is there already, if it agrees."""
    source = source.resolve()
    sizes = files_of_model(source)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = root / f"{source.name[:60]}-{_digest(source, sizes)}"
    if _is_whole(place, sizes):
        return place
    with _locked(root / f".{place.name}.lock", given_up):
        if _is_whole(place, sizes):
            return place
        return _copied(source, sizes, place, given_up)


def staged_copies(scratch: Path) -> list[Path]:
    """This user's copies on a node's disk, and what is left of copying; none being made now.

    Raises InputError where the user has no folder there.
    """
    folder = own_scratch(scratch) / WEIGHTS_FOLDER
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not _is_being_made(path)]


def _is_being_made(path: Path) -> bool:
    named = _OF_COPY.fullmatch(path.name)
    lock = path.with_name(f".{named[1]}.lock") if named else path
    try:
        with lock.open("r") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _digest(source: Path, sizes: Mapping[str, int]) -> str:
    """Tells apart other weights that are later put into the same folder."""
    times = {name: (source / name).stat().st_mtime_ns for name in sizes}
    text = json.dumps([str(source), sizes, times], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_whole(place: Path, sizes: Mapping[str, int]) -> bool:
    try:
        return all((place / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


@contextlib.contextmanager
def _locked(path: Path, given_up: Callable[[], bool]) -> Iterator[None]:
    with path.open("a") as stream:
        waiting = threading.Event()
        while not given_up():
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting.wait(LOCK_POLL_S)
                continue
            except OSError:
                pass  # a disk without locks: the rename decides
            break
        yield


def _copied(
    source: Path, sizes: Mapping[str, int], place: Path, given_up: Callable[[], bool]
) -> Path:
    if place.exists():  # cut short by somebody's clean-up: never served from
        shutil.rmtree(place, ignore_errors=True)
    needed, free = sum(sizes.values()), shutil.disk_usage(place.parent).free
    if needed + SPARE_BYTES > free:
        raise InputError(
            f"site: weights.stage: {source} takes {needed / 2**30:.1f} GiB, and {place.parent} has "
            f"{free / 2**30:.1f} GiB free; name a larger `scratch`, remove old copies with "
            "`scepsy clean --weights`, or set `stage: false`"
        )
    making = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        _copy_all(source, sizes, making, given_up)
        if not _is_whole(making, sizes):
            raise RunError(f"{source}: changed while it was copied to {place.parent}; try again")
        with contextlib.suppress(OSError):  # another was faster: its copy is as good
            making.rename(place)
    except OSError as error:
        raise RunError(f"{source}: cannot be copied to {place.parent}: {error}") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    if not _is_whole(place, sizes):
        raise RunError(f"{place}: cannot be put in its place; remove it")
    return place


def _copy_all(
    source: Path, sizes: Mapping[str, int], target: Path, given_up: Callable[[], bool]
) -> None:
    """A few files at once: a parallel file system is slow one by one."""
    largest_first = sorted(sizes, key=lambda name: -sizes[name])
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        copies = [pool.submit(_copy, source / n, target / n, given_up) for n in largest_first]
        for copy in copies:
            copy.result()


def _copy(source: Path, target: Path, given_up: Callable[[], bool]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            if given_up():
                raise RunError(f"{source}: copying was stopped")
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
