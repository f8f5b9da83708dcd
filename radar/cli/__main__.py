"""`python -m radar.cli`."""

import sys

from radar.cli import main

sys.exit(main())
