"""`python -m orchestrator` is the command `phasefront`, from a checkout without installing."""

import sys

from orchestrator.cli import main

sys.exit(main())
