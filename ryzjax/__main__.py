"""python -m ryzjax: the command line, see `ryzjax.cli`."""

import sys

from ryzjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
