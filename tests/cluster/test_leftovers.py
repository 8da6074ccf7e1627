"""Processes found by a mark that they inherit, however far they went."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid

import psutil

from scepsy_hpc.cluster.leftovers import end_processes, marked

ORPHAN = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"


def test_an_orphan_that_ignores_sigterm_is_found_and_killed():
    """It has no parent and no session in common; others of this user are left alone."""
    value = uuid.uuid4().hex
    environment = {**os.environ, "TEST_MARK": value}
    line = [sys.executable, "-c", ORPHAN, sys.executable, "-c", STUBBORN]
    subprocess.run(line, env=environment, check=True)
    (found,) = marked("TEST_MARK", value)
    assert marked("TEST_MARK", value[:-1]) == set()
    left = asyncio.run(end_processes(lambda: marked("TEST_MARK", value), grace_s=0.2))
    assert left == set()
    assert not found.is_running() or found.status() == psutil.STATUS_ZOMBIE


def test_nothing_left_is_no_wait():
    """The usual end of a run."""
    assert asyncio.run(end_processes(set, grace_s=1e6)) == set()
