"""The error tree. Every error a user can cause or meet is one of these and ends as one line."""

from __future__ import annotations


class ScepsyError(Exception):
    """Base of all errors of this package; ``exit_code`` is what the command line returns."""

    exit_code = 1


class InputError(ScepsyError):
    """A file, option or environment is wrong: names the place, the value, what is allowed."""

    exit_code = 2


class RunError(ScepsyError):
    """Work that had started failed; the message says what was lost (nothing should be)."""

    exit_code = 1


class UnfinishedError(RunError):
    """Work was cut short and can be resumed; the message says how, and what is left."""

    exit_code = 4


class InfeasibleError(ScepsyError):
    """No allocation meets the target; the message names the nearest feasible one."""

    exit_code = 3
