"""Replay: traced runs recomputed with call latencies drawn at a candidate's load.

Calls that are sent together find one state of their deployment and share it (``rounds``); each is
scaled to its own tokens; think and tool times stay; the run's end follows from its dependency
graph. All runs are one graph, worked off level by level, so a pass is a few array operations a
level. The draws depend on seed and call alone: candidates are compared under the same luck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import RunFigures
from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.curves.curve import Curve
from scepsy_hpc.planning.pipeline.pipeline import GroupLoad
from scepsy_hpc.planning.simulation.hosts import size_of
from scepsy_hpc.planning.simulation.percentiles import latency_figures, run_intervals
from scepsy_hpc.planning.simulation.rounds import Rounds, States
from scepsy_hpc.planning.simulation.run_graph import RunGraph
from scepsy_hpc.tracing.demand.bursts import WINDOW_OF_MEDIAN

NUM_DRAWS = 200
_DRAWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """Nodes ``first`` .. ``last`` - 1; their parents, flat, and where each node's begin."""

    first: int
    last: int
    parents: Ints
    begins: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """All traced runs as one graph. Nodes stand by level, whatever their run.

    Nodes and runs are arrays of one length each; ``deployment`` indexes ``deployments`` and is -1
    where a node takes its traced time. ``tokens`` has shape (nodes, 3): input, output, cached; -1
    is unknown. ``round``: which calls were sent together; ``round_run`` is the run of each round.
    """

    workflows: tuple[str, ...]
    deployments: tuple[str, ...]
    levels: tuple[_Level, ...]
    gap_s: Floats
    traced_s: Floats
    deployment: Ints
    tokens: Ints
    round: Ints
    round_run: Ints
    run_workflow: Ints
    run_tail_s: Floats
    run_ends: _Level

    @property
    def num_nodes(self) -> int:
        """Calls and tools of all runs."""
        return len(self.gap_s)

    @classmethod
    def of(
        cls,
        graphs: Mapping[str, Sequence[RunGraph]],
        names: Mapping[str, Mapping[str, str]],
    ) -> Replay:
        """Put all runs together; failed ones are left out.

        ``names`` maps each workflow's aliases to deployments. Raises InputError for an alias that
        has none, and where no run is left.
        """
        deployments = tuple(dict.fromkeys(d for mine in names.values() for d in mine.values()))
        flat = _Flat(names, deployments)
        for index, (workflow, mine) in enumerate(graphs.items()):
            for graph in mine:
                if graph.is_ok:
                    flat.add(index, workflow, graph)
        if not flat.runs:
            raise InputError("replay: there are no successful runs among the spans")
        return flat.replay(tuple(graphs))

    def run_lengths_s(self, durations_s: Floats) -> Floats:
        """Lengths of the runs if the nodes took this long.

        ``durations_s`` has shape (nodes,) or (nodes, draws); the answer (runs,) or (runs, draws).
        """
        ends_s = np.empty_like(durations_s)
        gap_s, tail_s = self.gap_s, self.run_tail_s
        if durations_s.ndim == 2:
            gap_s, tail_s = gap_s[:, None], tail_s[:, None]
        np.add(gap_s, durations_s, out=ends_s)
        for level in self.levels[1:]:
            ends_s[level.first : level.last] += np.maximum.reduceat(
                ends_s[level.parents], level.begins, axis=0
            )
        found = np.broadcast_to(tail_s, (len(tail_s), *durations_s.shape[1:])).copy()
        waiting = slice(self.run_ends.first, self.run_ends.last)
        if waiting.stop > waiting.start:
            found[waiting] += np.maximum.reduceat(
                ends_s[self.run_ends.parents], self.run_ends.begins, axis=0
            )
        return found

    def figures(
        self,
        loads: Mapping[str, GroupLoad],
        seed: int = 0,
        num_draws: int = NUM_DRAWS,
        with_intervals: bool = True,
    ) -> dict[str, RunFigures]:
        """Run latency of each workflow with its deployments under these loads. Raises InputError.

        Null where a deployment is overloaded. Intervals are bootstrapped over the traced runs.
        """
        if self._is_overloaded(loads):
            counts = np.bincount(self.run_workflow, minlength=len(self.workflows))
            return {
                name: RunFigures(num_runs=int(n))
                for name, n in zip(self.workflows, counts, strict=True)
            }
        lengths_s = self.draw(loads, seed, num_draws)
        found = {}
        for index, name in enumerate(self.workflows):
            mine = lengths_s[self.run_workflow == index]
            found[name] = replace(
                latency_figures(mine.ravel()),
                num_runs=len(mine),
                intervals=run_intervals(mine, seed) if with_intervals else {},
            )
        return found

    def draw(self, loads: Mapping[str, GroupLoad], seed: int, num_draws: int) -> Floats:
        """Run lengths (s), shape (runs, draws)."""
        if num_draws < 1:
            raise InputError(f"num_draws ({num_draws}) must be at least 1")
        parts = []
        for index, name in self._called():
            rounds, states = self._rounds(index, loads[name].curve), States.of(loads[name])
            parts.append((rounds, states, states.likeness(rounds), states.stretch(rounds)))
        fixed_s = np.where(self.deployment < 0, self.traced_s, 0.0)[:, None]
        chance = np.random.default_rng([seed, 3])
        found = []
        for first in range(0, num_draws, _DRAWS_AT_ONCE):
            number = min(_DRAWS_AT_ONCE, num_draws - first)
            durations_s = np.repeat(fixed_s, number, axis=1)
            own = chance.standard_normal((len(self.round_run), number))
            for rounds, states, alike, stretch in parts:
                mood = chance.standard_normal((len(self.run_workflow), number))
                draws = math.sqrt(alike) * mood[rounds.runs]
                draws += math.sqrt(1.0 - alike) * own[rounds.rounds]
                calls = states.found(rounds, draws)
                durations_s[rounds.nodes] = stretch * rounds.latencies_s(states.load, calls)
            found.append(self.run_lengths_s(durations_s))
        return np.concatenate(found, axis=1)

    def _rounds(self, index: int, curve: Curve) -> Rounds:
        """The calls of one deployment, each with its own work."""
        nodes = np.flatnonzero(self.deployment == index)
        lengths, which = np.unique(self.tokens[nodes], axis=0, return_inverse=True)
        works = [
            size_of(curve, *(None if n < 0 else n for n in tokens)).work
            for tokens in lengths.tolist()
        ]
        return Rounds.of(nodes, np.array(works)[which.ravel()], self.round[nodes], self.round_run)

    def _called(self) -> list[tuple[int, str]]:
        used = set(np.unique(self.deployment).tolist())
        return [(i, name) for i, name in enumerate(self.deployments) if i in used]

    def _is_overloaded(self, loads: Mapping[str, GroupLoad]) -> bool:
        for _, name in self._called():
            if name not in loads:
                raise InputError(f"{name}: has no load; replay needs one for each LLM called")
            load = loads[name]
            if load.arrivals_rps >= load.num_replicas * load.curve.server.limit_rps * (1.0 - 1e-9):
                return True
        return False


class _Flat:
    """Collects runs and lays their nodes out by level."""

    def __init__(self, names: Mapping[str, Mapping[str, str]], deployments: Sequence[str]) -> None:
        self.names = names
        self.index = {name: i for i, name in enumerate(deployments)}
        self.runs: list[tuple[int, float, list[int]]] = []  # workflow, tail, what the end awaits
        self.level: list[int] = []
        self.parents: list[list[int]] = []
        self.rows: list[tuple[float, float, int, int, int, int, int]] = []
        self.round_run: list[int] = []

    def add(self, index: int, workflow: str, graph: RunGraph) -> None:
        """One more run."""
        base, begun = len(self.level), dict[tuple[int, tuple[int, ...]], tuple[int, float]]()
        for node in graph.nodes:
            self.level.append(1 + max((self.level[base + p] for p in node.parents), default=-1))
            self.parents.append([base + p for p in node.parents])
            place = -1
            if node.llm is not None:
                name = self.names.get(workflow, {}).get(node.llm)
                if name is None:
                    raise InputError(
                        f"workflow {workflow}: run {graph.run_id} calls {node.llm!r}, which no "
                        "deployment hosts"
                    )
                place = self.index[name]
            lengths = (node.input_tokens, node.output_tokens, node.cached_tokens)
            tokens = tuple(-1 if n is None else n for n in lengths)
            number, limit_s = begun.get((place, node.parents), (-1, -1.0))
            if node.gap_s > limit_s:
                # Sent later than a call of the same parents could be together with.
                number, limit_s = len(self.round_run), node.gap_s + WINDOW_OF_MEDIAN * node.traced_s
                begun[place, node.parents] = (number, limit_s)
                self.round_run.append(len(self.runs))
            row = (node.gap_s, node.traced_s, place, *tokens, number)
            self.rows.append(row)  # type: ignore[arg-type]
        self.runs.append((index, graph.tail_s, [base + p for p in graph.end_parents]))

    def replay(self, workflows: tuple[str, ...]) -> Replay:
        """All runs as arrays."""
        levels = np.array(self.level, dtype=np.int64)
        order = np.argsort(levels, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        bounds = np.searchsorted(levels[order], np.arange(levels.max(initial=-1) + 2))
        found = []
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            awaited = [self.parents[i] for i in order[first:last].tolist()]
            found.append(_level(first, last, awaited, place))
        # Runs that wait for nothing go last, so that the others are one slice.
        ranked = sorted(range(len(self.runs)), key=lambda run: not self.runs[run][2])
        runs, run_place = [self.runs[run] for run in ranked], np.argsort(ranked)
        waiting = [run[2] for run in runs if run[2]]
        table = np.array([self.rows[i] for i in order.tolist()], dtype=np.float64).reshape(-1, 7)
        return Replay(
            workflows=workflows,
            deployments=tuple(self.index),
            levels=tuple(found),
            gap_s=table[:, 0].copy(),
            traced_s=table[:, 1].copy(),
            deployment=table[:, 2].astype(np.int64),
            tokens=table[:, 3:6].astype(np.int64),
            round=table[:, 6].astype(np.int64),
            round_run=run_place[np.array(self.round_run, dtype=np.int64)],
            run_workflow=np.array([run[0] for run in runs], dtype=np.int64),
            run_tail_s=np.array([run[1] for run in runs]),
            run_ends=_level(0, len(waiting), waiting, place),
        )


def _level(first: int, last: int, awaited: Sequence[Sequence[int]], place: Ints) -> _Level:
    counts = np.array([0, *(len(mine) for mine in awaited)], dtype=np.int64)
    flat = np.array([parent for mine in awaited for parent in mine], dtype=np.int64)
    return _Level(first, last, place[flat], np.cumsum(counts)[:-1])
