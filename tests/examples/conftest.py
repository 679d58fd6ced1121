"""The modules of the demo are imported as the demo itself imports them."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES / "mandelbrot"))
