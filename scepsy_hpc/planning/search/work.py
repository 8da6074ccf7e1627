"""How much a search may do: counted in work, so that a busy machine gives the same answer.

The unit is the deterministic time of CP-SAT, about a second of one core. It counts what the solver
does and not how long it took. Tables, bisections and lists have limits of their own, in cells and
tries. Only where a user asks for it does a clock decide; the answer then depends on the machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

DEFAULT = 5.0
"""Units that one search may take where the user sets no time limit."""

LEAST = 0.02
"""A solver gets that much however little is left: small problems end within it."""


@dataclass(slots=True)
class Work:
    """What is left to do, in units, and until when (on ``time.monotonic``) where a clock decides.

    What is done is booked here and in ``whole``, of which this is a part.
    """

    left: float = DEFAULT
    ends_s: float | None = None
    whole: Work | None = None
    done: float = 0.0

    @classmethod
    def within(cls, units: float, time_limit_s: float | None) -> Work:
        """So many units; with a time limit the clock alone decides."""
        if time_limit_s is None:
            return cls(units)
        return cls(math.inf, time.monotonic() + time_limit_s)

    def part(self, fraction: float) -> Work:
        """A fraction of what is left."""
        ends_s = None
        if self.ends_s is not None:
            now = time.monotonic()
            ends_s = now + max(self.ends_s - now, 0.0) * fraction
        return Work(self.left * fraction, ends_s, self)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left."""
        return self.left <= 0 or (self.ends_s is not None and time.monotonic() >= self.ends_s)

    @property
    def left_s(self) -> float:
        """Seconds left by the clock, never quite nothing; infinite where no clock decides."""
        return math.inf if self.ends_s is None else max(self.ends_s - time.monotonic(), LEAST)

    def book(self, units: float) -> None:
        """So much was done."""
        self.left -= units
        self.done += units
        if self.whole is not None:
            self.whole.book(units)
