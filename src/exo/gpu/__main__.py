"""``python -m exo.gpu`` is the command ``exo-gpu``."""

import sys

from exo.gpu.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
