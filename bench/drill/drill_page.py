"""docs/drill.md, made of the figures of a drill and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "drill.md"
COLUMNS = (
    *("tasks", "faults", "starts"),
    *("lost", "twice", "blamed", "wrong", "hung", "left_behind"),
)
ZEROS = COLUMNS[3:]
WHAT = {
    "kill_worker": "SIGKILL to an agent at work",
    "kill_nursery": "SIGKILL to the process that forks agents",
    "kill_engine": "SIGKILL to an engine, its guard, or both",
    "kill_lead": "SIGKILL to the process that leads the batch",
    "kill_command": "SIGKILL to the command that the user gave",
    "freeze_engine": "an engine stopped (SIGSTOP) for good",
    "freeze_engine_a_while": "an engine stopped for 1 to 8 s",
    "freeze_lead_a_while": "the lead stopped for 1 to 10 s",
    "odd_result": "lone surrogates, U+2028, NUL, 600 and 100,000 deep, NaN, 20 MB on stdout, ...",
    "orphan": "agents that leave processes in sessions of their own",
    "full_disk": "no byte left where the results are, for 2 to 6 s",
    "read_only_disk": "every write there answers EROFS, for 2 to 6 s",
    "no_locks": "every lock answers ENOLCK: lead killed, or a second writer",
    "two_writers": "a second `run --resume` from another host while the lead hangs, which wakes up",
    "slurm_kill_engine": "SIGKILL to an engine of a Slurm job",
    "slurmd_stopped": "slurmd of a node killed for 2 to 12 s",
    "node_lost": "the node of rank 0 lost: slurmd, step daemons, srun and tasks",
    "lead_frozen": "the lead of a Slurm job stopped for good",
    "preemption": "a job of higher priority takes the nodes; requeue",
    "time_limit": "the time limit in mid-batch",
    "scancel": "scancel of the running job, or of all of them",
}


def table_of(figures: dict[str, Any]) -> str:
    """The counts, one row a kind of fault, and their sum."""
    head = ["fault", "runs", *(name.replace("_", " ") for name in COLUMNS)]
    rows = [[one["kind"], one["runs"], *(one[c] for c in COLUMNS)] for one in figures["kinds"]]
    total = ["sum", *(sum(row[k] for row in rows) for k in range(1, len(head)))]
    lines = [head, ["---"] * len(head), *rows, total]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def page_of(figures: dict[str, Any]) -> str:
    """The whole page."""
    machine = figures["machine"]
    commits = ", ".join(sorted({one["commit"] for one in figures["kinds"]}))
    kinds = [one["kind"] for one in figures["kinds"]]
    meanings = "\n".join(
        f"- **{kind}**: {WHAT.get(kind, 'several kinds in one run')}" for kind in kinds
    )
    problems = "\n".join(f"- {one}" for one in figures["problems"][:40])
    went_wrong = f"\nWhat went wrong:\n\n{problems}\n" if problems else ""
    return f"""# The drill

What a batch loses when things break: nothing is the goal. `make drill` starts runs by the command
line as a user would, breaks something again and again, resumes where a command gave up, and then
counts with a checker that shares no code with the package (`bench/drill/checker.py`): tasks lost,
tasks that stand twice, tasks blamed on their agent, results that are wrong or differ from the merge
of the segments, runs that did not end, and processes, shared memory and temporary files that were
left behind. Faults and their moments follow from a seed. Each run has
{figures["tasks_a_run"]} tasks on simulated engines; on Slurm it runs as an unprivileged user of a
real cluster of several slurmd on one machine.

Made by `make drill` (`bench/drill/drill.py --seed {figures["seed"]}`) on {figures["date"]}, at
{commits}: {machine["cpus"]} CPUs, Python {machine["python"]}, {machine["system"]},
Slurm: {machine["slurm"]}; {figures["took_s"]} s in all. The figures stand in
[bench/drill.json](../bench/drill.json).

{table_of(figures)}

{meanings}
{went_wrong}
What it does not show: a read-only disk and missing locks are answers of a library loaded before
libc, since Linux refuses to remount a disk that is being written to; a node that loses power is
SIGKILL to all that runs on it, so its connections are closed, not silent; the second writer is on
another host by name only.

One kind again, with a seed and a size of your own:

    python bench/drill/drill.py --only kill_lead --seed 7 --tasks 100 --faults 3
"""
