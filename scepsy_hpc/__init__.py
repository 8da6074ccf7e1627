"""Plans and runs batches of multi-LLM agent workflows inside one Slurm allocation."""

__version__ = "0.1.0"
