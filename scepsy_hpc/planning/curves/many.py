"""Latencies of many groups at once, also of thousands of replicas: a search asks for every number.

Up to ``_EVERY`` replicas, and wherever the load is near the limit, each number has its own chain.
Between, at a fixed load of the whole group, the logarithm of the latency is smooth in that of the
number of replicas: twelve numbers an octave have their chain, and a cubic through the nearest four
gives the rest, within 0.3% on smooth curves and 2% where X bends
sharply. Who asks for one group gets the very figure that the search saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scepsy_hpc.metrics import Floats, Ints
from scepsy_hpc.planning.curves.bursts import Bursts
from scepsy_hpc.planning.curves.group import Lanes, group_latencies_s
from scepsy_hpc.planning.curves.queueing import Server

_EVERY = 24
_PER_OCTAVE = 12
_NUM_OCTAVES = 16
_MOST_BUSY = 0.8
"""Where the smallest of the four groups is busier than this part of its limit there is no cubic."""

_NODES = np.array(
    sorted(
        {round(_EVERY * 2 ** (i / _PER_OCTAVE)) for i in range(_NUM_OCTAVES * _PER_OCTAVE)}
        | set(range(1, _EVERY + 1))
    ),
    dtype=np.float64,
)


def many_latencies_s(
    servers: Sequence[Server],
    which: Ints,
    num_replicas: Floats,
    loads_rps: Floats,
    bursts: Sequence[Bursts],
) -> Floats:
    """Mean latency of a call (s) in each group; infinite where it cannot keep up.

    ``which`` indexes ``servers`` and ``bursts``; ``loads_rps`` are those of whole groups.
    """
    limits = np.array([s.limit_rps for s in servers])[which]
    above = np.searchsorted(_NODES, num_replicas)
    first = np.maximum(np.minimum(above, len(_NODES) - 2) - 2, 0)
    smooth = (num_replicas > _EVERY) & (num_replicas < _NODES[-2])
    smooth &= loads_rps < _MOST_BUSY * limits * _NODES[first]
    smooth &= _NODES[np.minimum(above, len(_NODES) - 1)] != num_replicas
    rows, alone = np.flatnonzero(smooth), np.flatnonzero(~smooth)
    corners = _NODES[first[rows, None] + np.arange(4)]
    times_s = _once(
        servers,
        np.concatenate([which[alone], np.repeat(which[rows], 4)]),
        np.concatenate([num_replicas[alone], corners.ravel()]),
        np.concatenate([loads_rps[alone], np.repeat(loads_rps[rows], 4)]),
        bursts,
    )
    found = np.empty(len(which))
    found[alone] = times_s[: len(alone)]
    # Over what it would be without chance, which bends where X does.
    each_rps = np.concatenate([corners, num_replicas[rows, None]], axis=1)
    each_rps = loads_rps[rows, None] / each_rps
    fluid_s = _fluid_s(servers, which[rows], each_rps)
    logs = np.log(times_s[len(alone) :].reshape(-1, 4) / fluid_s[:, :4])
    found[rows] = fluid_s[:, 4] * _cubic(np.log(corners), logs, num_replicas[rows])
    return found


def _once(
    servers: Sequence[Server],
    which: Ints,
    num_replicas: Floats,
    loads_rps: Floats,
    bursts: Sequence[Bursts],
) -> Floats:
    """Each chain once, whoever needs it."""
    keys = np.unique(loads_rps, return_inverse=True)[1].astype(np.int64)
    for column in (which, num_replicas.astype(np.int64)):
        keys = keys * (int(column.max(initial=0)) + 1) + column
    _, place, back = np.unique(keys, return_index=True, return_inverse=True)
    lanes = lanes_of(servers, which[place], num_replicas[place], loads_rps[place], bursts)
    return np.asarray(group_latencies_s(servers, lanes)[back])


def _fluid_s(servers: Sequence[Server], which: Ints, loads_rps: Floats) -> Floats:
    """Latency where a replica always holds as many calls as do its load; shape (rows, any)."""
    found = np.empty_like(loads_rps)
    for index in np.unique(which):
        server, mine = servers[index], which == index
        rates = np.minimum.accumulate(server.throughput_rps[::-1])[::-1]
        in_flight = np.interp(loads_rps[mine], rates, server.concurrency)
        found[mine] = in_flight / np.maximum(server.rate_rps(in_flight), 1e-300)
    return found


def _cubic(at: Floats, logs: Floats, num_replicas: Floats) -> Floats:
    """Lagrange's polynomial through four logarithms, shape (rows, 4), at these replicas."""
    here, total = np.log(num_replicas), np.zeros(len(num_replicas))
    for i in range(4):
        weight = np.ones(len(here))
        for j in range(4):
            if j != i:
                weight *= (here - at[:, j]) / (at[:, i] - at[:, j])
        total += weight * logs[:, i]
    return np.asarray(np.exp(total))


def lanes_of(
    servers: Sequence[Server],
    which: Ints,
    num_replicas: Floats,
    loads_rps: Floats,
    bursts: Sequence[Bursts],
) -> Lanes:
    """The groups with what goes together in them and how uneven they are."""
    limits = np.array([s.limit_rps for s in servers])[which]
    utilisation = loads_rps / (num_replicas * limits)
    together, uneven = np.ones(len(which)), np.zeros(len(which))
    for index, one in enumerate(bursts):
        rows = np.flatnonzero(which == index)
        together[rows] = one.together(num_replicas[rows], utilisation[rows])
        uneven[rows] = one.uneven(num_replicas[rows], utilisation[rows])
    return Lanes(which, num_replicas, loads_rps, together, uneven)
