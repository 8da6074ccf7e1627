"""The command line: commands of a few lines each; every error ends as one line."""

from __future__ import annotations

import click


@click.group()
def cli() -> None:
    """Plan and run batches of multi-LLM agent workflows inside one Slurm allocation."""


def main() -> None:
    """Entry point."""
    cli()
