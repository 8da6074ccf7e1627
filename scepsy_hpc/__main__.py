"""``python -m scepsy_hpc`` equals ``scepsy``."""

from scepsy_hpc.cli import main

if __name__ == "__main__":
    main()
