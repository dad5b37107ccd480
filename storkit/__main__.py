"""`python -m storkit`."""

import sys

from storkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
