"""``python -m carzero`` is the same as ``carzero``."""

import sys

from carzero.cli import main

sys.exit(main())
