"""Outside programs that say what a test wants, first on PATH."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest


def only_tools(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **says: tuple[str, int] | str
) -> Path:
    """PATH holds these programs and /bin/sh's own; each prints its text and ends with its code."""
    tools = folder / "tools"
    tools.mkdir()
    for name, said in says.items():
        text, code = said if isinstance(said, tuple) else (said, 0)
        path = tools / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(text)}\nexit {code}\n")
        path.chmod(0o755)
    for name in ("sh", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}")
    return tools
