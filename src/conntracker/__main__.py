"""`python -m conntracker`."""

import sys

from conntracker.cli.main import main

sys.exit(main())
