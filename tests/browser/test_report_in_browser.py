"""The report as a person sees it: in a real headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from report_case import make_run

from scepsy_hpc.report.html import write_report

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=1200,2400"),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a small run."""
    folder = make_run(tmp_path_factory.mktemp("run") / "results")
    return write_report(folder, folder / "report.html")[0]


def chromium(folder: Path, page: Path, *words: str) -> str:
    """What the browser prints; an error, never a skip, where there is none."""
    program = shutil.which("chromium")
    assert program, "chromium is missing; `make test-browser` installs it"
    line = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", *words, page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_page_holds_the_figures(report: Path, tmp_path: Path) -> None:
    """The rendered page has the measured figures, the plots, and says what was simulated."""
    page = chromium(tmp_path, report, "--dump-dom")
    text = re.sub(r"<[^>]+>", " ", page)
    assert "SIMULATED" in text
    assert "10 runs of rag ended well and 0 failed" in " ".join(text.split())
    for figure in ("0.154 runs/s", "6.5 s", "10.5 s", "65 s"):
        assert figure in text
    assert page.count("<svg") == 3
    assert "what it got &lt;and why&gt;" in page


def test_the_page_needs_nothing_else(report: Path) -> None:
    """One file: no script, and no address that a browser would fetch."""
    page = report.read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)[^"'\s>]+""", page)
    assert not re.findall(r"url\((?!#)", page)


def test_the_picture_shows_both_llms(report: Path, tmp_path: Path) -> None:
    """A screenshot has the colours of both LLMs, so the plots are drawn."""
    picture = tmp_path / "report.png"
    chromium(tmp_path, report, f"--screenshot={picture}")
    pixels = (matplotlib.image.imread(picture)[:, :, :3] * 255).round().astype(int)
    for colour in ((0x3B, 0x6F, 0xB6), (0xD9, 0x82, 0x2B)):
        assert int((np.abs(pixels - colour).sum(axis=2) < 12).sum()) > 500
