"""Makes the mini Slurm of the neighbouring folder, and this one's lab, importable."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
