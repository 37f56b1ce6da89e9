"""Runs the command line of `ryzjax.cli` for `python -m ryzjax`."""

import sys

from ryzjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
