"""``python -m protocl`` is the command ``protocl``."""

import sys

from protocl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
