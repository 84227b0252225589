"""Puts the checkout's root on the path of modules: `benchmarks` is found from a file that runs as a script, too."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
