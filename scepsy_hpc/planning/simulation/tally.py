"""What a simulation has seen so far, in bounded memory: batch means and histograms by time.

Runs are numbered as they arrive. `Series` keeps counts and sums of latencies in at most
``MOST_SMALL`` batches of runs and their distribution in ``NUM_SECTIONS`` sections of 16 batches;
when room runs out neighbours are put together. A histogram's bins are 1% wide, so a percentile is
within 0.5%, and never outside what was seen: equal latencies have exact ones. Calls are filed under
the number of their run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from scepsy_hpc.metrics import Floats, Ints

MOST_SMALL = 512
NUM_SECTIONS = 32
PER_SECTION = MOST_SMALL // NUM_SECTIONS
_LEAST_S = 1e-6
_STEP = math.log(1.01)
_HALF_BIN = math.expm1(0.5 * _STEP)
_NUM_BINS = 2600  # up to 1e5 s
_AT_ONCE = 4096


@dataclass(slots=True, eq=False)
class Series:
    """Latencies (s) by number of their run; batches of ``size`` runs.

    ``sums`` and ``counts`` have shape (MOST_SMALL,), ``histogram`` (NUM_SECTIONS, bins), ``least``
    and ``most`` of what stands in it (NUM_SECTIONS,); infinite where nothing does.
    """

    size: int = 1
    sums: Floats = field(default_factory=lambda: np.zeros(MOST_SMALL))
    counts: Floats = field(default_factory=lambda: np.zeros(MOST_SMALL))
    histogram: Ints = field(
        default_factory=lambda: np.zeros((NUM_SECTIONS, _NUM_BINS), dtype=np.int64)
    )
    least: Floats = field(default_factory=lambda: np.full(NUM_SECTIONS, math.inf))
    most: Floats = field(default_factory=lambda: np.full(NUM_SECTIONS, -math.inf))
    numbers: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def flush(self) -> None:
        """File what has come since."""
        if not self.values:
            return
        number, value = np.array(self.numbers), np.array(self.values)
        self.numbers.clear()
        self.values.clear()
        while int(number.max()) >= self.size * MOST_SMALL:
            self._halve()
        batch = number // self.size
        self.counts += np.bincount(batch, minlength=MOST_SMALL)
        self.sums += np.bincount(batch, weights=value, minlength=MOST_SMALL)
        bins = np.log(np.maximum(value, _LEAST_S) / _LEAST_S) / _STEP
        places = (batch // PER_SECTION) * _NUM_BINS
        places += np.minimum(bins.astype(np.int64), _NUM_BINS - 1)
        filled = np.bincount(places, minlength=NUM_SECTIONS * _NUM_BINS)
        self.histogram += filled.reshape(NUM_SECTIONS, _NUM_BINS)
        np.minimum.at(self.least, batch // PER_SECTION, value)
        np.maximum.at(self.most, batch // PER_SECTION, value)

    def _halve(self) -> None:
        """Put neighbours together."""
        for column in (self.sums, self.counts, self.histogram):
            half = len(column) // 2
            column[:half] = column[0::2] + column[1::2]
            column[half:] = 0
        half = NUM_SECTIONS // 2
        self.least[:half] = np.minimum(self.least[0::2], self.least[1::2])
        self.most[:half] = np.maximum(self.most[0::2], self.most[1::2])
        self.least[half:], self.most[half:] = math.inf, -math.inf
        self.size *= 2

    def file(self, number: int, value: float) -> None:
        """One more."""
        self.numbers.append(number)
        self.values.append(value)
        if len(self.values) >= _AT_ONCE:
            self.flush()

    def grow_to(self, size: int) -> None:
        """Make batches of ``size`` runs, a power of 2."""
        self.flush()
        while self.size < size:
            self._halve()


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Distribution of some latencies (s): bins, and the ``least_s`` and ``most_s`` of them."""

    histogram: Ints
    least_s: float
    most_s: float

    @classmethod
    def of(cls, series: Series, sections: slice = slice(None)) -> Seen:
        """What these sections hold."""
        least, most = series.least[sections], series.most[sections]
        return cls(series.histogram[sections].sum(axis=0), float(least.min()), float(most.max()))

    def quantile_s(self, part: float) -> float:
        """A quantile; NaN where nothing was seen."""
        above = np.cumsum(self.histogram)
        if above[-1] == 0:
            return math.nan
        place = int(np.searchsorted(above, part * above[-1]))
        return min(max(_LEAST_S * math.exp((place + 0.5) * _STEP), self.least_s), self.most_s)

    @property
    def slack(self) -> float:
        """What bins leave open of a quantile, either way as a part of it: half a bin at most."""
        if not 0.0 < self.least_s <= self.most_s:
            return _HALF_BIN
        return min(self.most_s / self.least_s - 1.0, _HALF_BIN)


def widened(interval: tuple[float, float], slack: float) -> tuple[float, float]:
    """An interval of a quantile with what bins leave open of it."""
    return interval[0] * (1.0 - slack), interval[1] * (1.0 + slack)


class Tally:
    """Recorder of a simulation that forgets single runs and calls.

    ``is_done`` once the first ``wanted`` runs have all ended. Series: of all runs that ended well,
    of each workflow's, of each deployment's calls; of all starts, and of the runs in
    flight that each run finds; of each workflow's ends, those of failed runs too.
    """

    def __init__(self, num_workflows: int, num_deployments: int, wanted: int) -> None:
        """Empty."""
        self.all_runs = Series()
        self.starts = Series()
        self.seen = Series()
        self.runs = [Series() for _ in range(num_workflows)]
        self.ended = [Series() for _ in range(num_workflows)]
        self.calls = [Series() for _ in range(num_deployments)]
        self.first_s = [math.inf] * num_workflows
        self.last_s = [-math.inf] * num_workflows
        self.num_runs = 0
        self.num_in_flight = 0
        self.wanted = self._left = wanted
        self.is_done = False

    def start_run(self, workflow: int, traced: int, now_s: float, is_ok: bool) -> int:
        """Number of a run that starts."""
        number = self.num_runs
        self.num_runs += 1
        if now_s < self.first_s[workflow]:
            self.first_s[workflow] = now_s
        self.starts.file(number, now_s)
        self.seen.file(number, self.num_in_flight)
        self.num_in_flight += 1
        return number

    def end_run(self, run: int, workflow: int, start_s: float, now_s: float, is_ok: bool) -> None:
        """A run has ended."""
        self.last_s[workflow] = now_s
        self.num_in_flight -= 1
        latency_s = now_s - start_s
        self.ended[workflow].file(run, latency_s)
        if is_ok:
            self.all_runs.file(run, latency_s)
            self.runs[workflow].file(run, latency_s)
        if run < self.wanted:
            self._left -= 1
            self.is_done = self._left == 0

    def start_call(self, run: int, deployment: int, replica: int, now_s: float) -> int:
        """A call is filed under its run."""
        return run

    def end_call(self, call: int, deployment: int, start_s: float, now_s: float) -> None:
        """A call has ended."""
        self.calls[deployment].file(call, now_s - start_s)

    def want(self, number: int) -> None:
        """Go on until the first ``number`` runs have ended; rounded up to whole batches."""
        size = self.flush()
        batches = -(-number // size)
        self.wanted = batches * size
        ended = sum(float(series.counts[:batches].sum()) for series in self.ended)
        self._left = self.wanted - round(ended)
        self.is_done = self._left == 0

    def flush(self) -> int:
        """File everything; the size of a batch, from now on the same for all series."""
        every = (self.all_runs, self.starts, self.seen, *self.runs, *self.ended, *self.calls)
        for series in every:
            series.flush()
        size = max(series.size for series in every)
        for series in every:
            series.grow_to(size)
        return size
