"""The mini clusters that the tests of this folder share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .config import ClusterShape
from .mini_slurm import MiniSlurm


@pytest.fixture(scope="session")
def mini_slurm(request: pytest.FixtureRequest) -> Iterator[MiniSlurm]:
    """Four idle nodes of four GPUs; an error, never a skip, where Slurm is missing."""
    yield from _running(request.session, ClusterShape())


@pytest.fixture(scope="session")
def hasty_slurm(request: pytest.FixtureRequest) -> Iterator[MiniSlurm]:
    """Two nodes of four CPU slices; it gives up nodes and requeues jobs within seconds.

    For tests of faults. A busy machine could lose its nodes by mistake: no heavy work here.
    """
    shape = ClusterShape(
        num_nodes=2, gpu_type="cpu_slice", node_down_after_s=6, kill_wait_s=2, requeue_delay_s=5
    )
    yield from _running(request.session, shape)


@pytest.fixture
def cluster_dir() -> Iterator[Path]:
    """A directory for a cluster of the test's own; short, for the sake of Unix sockets."""
    directory = Path(tempfile.mkdtemp(prefix="scepsy-slurm-"))
    yield directory
    shutil.rmtree(directory)


def _running(session: pytest.Session, shape: ClusterShape) -> Iterator[MiniSlurm]:
    """The cluster while it runs; its files stay for a look when a test failed."""
    directory = Path(tempfile.mkdtemp(prefix="scepsy-slurm-"))
    with MiniSlurm(directory, shape) as cluster:
        yield cluster
    if not session.testsfailed:
        shutil.rmtree(directory)
