"""The same function on Slurm, in an allocation, as local processes, or in this process."""
