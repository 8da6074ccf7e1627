"""The drill: seeded faults in runs driven by the command line, and a count of what went wrong.

python bench/drill/drill.py                      # all of it; `make drill`
python bench/drill/drill.py --small              # twenty local faults, as in CI
python bench/drill/drill.py --only kill_lead --seed 7 --tasks 100 --faults 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
FIGURES = HERE.parent / "drill.json"
sys.path[:0] = [str(HERE), str(REPOSITORY)]

import drill_page  # noqa: E402
from episode import Verdict, local_run  # noqa: E402
from local_faults import LOCAL, NEEDS_MOUNT, NEEDS_SHIM, build_shim  # noqa: E402

IN_A_NAMESPACE = "SCEPSY_DRILL_NAMESPACE"
SMALL = {
    *("kill_worker", "kill_nursery", "kill_engine", "kill_lead", "freeze_engine_a_while"),
    *("freeze_lead_a_while", "odd_result", "full_disk", "read_only_disk", "two_writers"),
}


def main(words: list[str]) -> int:
    """Exit code 0 when every count is zero."""
    options = _options(words)
    if os.geteuid() == 0 and IN_A_NAMESPACE not in os.environ:
        _enter_namespace()
    folder = Path(tempfile.mkdtemp(prefix="drill-", dir=options.folder))
    folder.chmod(0o755)
    began_s = time.monotonic()
    try:
        verdicts = _all_runs(options, folder)
    finally:
        for disk in folder.glob("*/disk"):
            subprocess.run(["umount", "-l", disk], capture_output=True, check=False)
    figures = _figures(options, verdicts, time.monotonic() - began_s)
    print(drill_page.table_of(figures))
    figures = _with_other_kinds(options.json, figures)
    bad = [one for one in verdicts if not one.is_clean]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.page:
        drill_page.PAGE.write_text(drill_page.page_of(figures))
    if not bad:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"{len(bad)} of {len(verdicts)} runs went wrong; what they left is in {folder}")
    return int(bool(bad))


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=1)
    add("--tasks", type=int, default=500, help="of each run")
    add("--faults", type=int, default=10, help="of each kind")
    add("--only", action="append", help="these kinds only; may be repeated")
    add("--where", choices=("local", "slurm", "both"), default="both")
    add("--small", action="store_true", help="twenty local faults of all sorts")
    add("--side-by-side", type=int, default=3, help="clusters at a time")
    add("--folder", type=Path, help="where runs have their folders (default: TMPDIR)")
    add("--json", type=Path, help=f"put the figures into it (committed: {FIGURES.name})")
    add("--page", action="store_true", help="write docs/drill.md")
    return parser.parse_args(words)


def _enter_namespace() -> None:
    """Mounts of the drill, and its shared memory, end with it and meet nobody else's."""
    os.environ[IN_A_NAMESPACE] = "1"
    script = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    os.execvp(line[0], [*line, sys.executable, *sys.argv])


def _all_runs(options: argparse.Namespace, folder: Path) -> list[Verdict]:
    verdicts = []
    if options.small:
        return _small_runs(options, folder)
    if options.where != "slurm":
        kinds = [kind for kind in LOCAL if not options.only or kind in options.only]
        for kind in kinds:
            verdicts.append(_local(options, folder, kind, [kind] * options.faults))
    if options.where != "local":
        import slurm_runs

        verdicts += slurm_runs.all_runs(options, folder, _report)
    return verdicts


def _small_runs(options: argparse.Namespace, folder: Path) -> list[Verdict]:
    """Two runs of ten faults each, one of every kind in an order by the seed."""
    verdicts = []
    for number in range(2):
        names = sorted(SMALL)
        random.Random(f"{options.seed}/small/{number}").shuffle(names)
        verdicts.append(_local(options, folder, f"mixed{number}", names))
    return verdicts


def _local(options: argparse.Namespace, folder: Path, kind: str, names: list[str]) -> Verdict:
    needs_root = (NEEDS_MOUNT & set(names)) and os.geteuid() != 0
    if needs_root:
        sys.exit(f"drill: {kind} mounts a small disk and needs root; leave it out with --only")
    shim = build_shim(folder) if NEEDS_SHIM & set(names) else None
    place = folder / kind
    place.mkdir()
    seed = f"{options.seed}/{kind}"
    verdict = local_run(kind, names, LOCAL, seed, place, shim, options.tasks)
    _report(verdict)
    return verdict


def _report(verdict: Verdict) -> None:
    what = "clean" if verdict.is_clean else "WRONG"
    print(
        f"{verdict.kind}: {verdict.faults} faults, {verdict.starts} starts, "
        f"{verdict.took_s:.0f} s: {what}",
        flush=True,
    )
    for problem in verdict.problems[:12]:
        print(f"    {problem}")
    if not verdict.is_clean:
        print("\n".join(f"    | {line}" for line in verdict.log), flush=True)


def _figures(options: argparse.Namespace, verdicts: list[Verdict], took_s: float) -> dict[str, Any]:
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "seed": options.seed,
        "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "slurm": _slurm_version(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "tasks_a_run": options.tasks,
        "took_s": round(took_s),
        "kinds": [row | {"commit": commit} for row in _kinds(verdicts)],
        "problems": [f"{v.kind} ({v.seed}): {p}" for v in verdicts for p in v.problems],
    }


def _slurm_version() -> str:
    line = ["slurmd", "-V"] if shutil.which("slurmd") else ["echo", "none"]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()


def _with_other_kinds(path: Path | None, figures: dict[str, Any]) -> dict[str, Any]:
    """Rows of kinds that were not drilled now stay as they are, with their commit."""
    if path is None or not path.exists():
        return figures
    before, now = json.loads(path.read_text()), {one["kind"] for one in figures["kinds"]}
    if [before[key] for key in ("seed", "tasks_a_run")] != [
        figures["seed"],
        figures["tasks_a_run"],
    ]:
        return figures  # they would not belong together
    kept = [one for one in before["kinds"] if one["kind"] not in now]
    order = {kind: k for k, kind in enumerate(drill_page.WHAT)}
    rows = sorted(kept + figures["kinds"], key=lambda one: order.get(one["kind"], len(order)))
    problems = [p for p in before["problems"] if p.partition(" ")[0] not in now]
    took_s = figures["took_s"] + (before["took_s"] if kept else 0)
    return figures | {
        "kinds": rows,
        "problems": problems + figures["problems"],
        "took_s": took_s,
    }


def _kinds(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        row = rows.setdefault(verdict.kind, {"kind": verdict.kind, "runs": 0})
        row["runs"] += 1
        for column in drill_page.COLUMNS:
            row[column] = row.get(column, 0) + getattr(verdict, column)
    return list(rows.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
