"""The command line: commands of a few lines each; every error ends as one line."""

from scepsy_hpc.cli.main import main

__all__ = ["main"]
