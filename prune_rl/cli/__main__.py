"""`python -m prune_rl.cli`, which is `prune-rl`."""

import sys

from prune_rl.cli import main

sys.exit(main())
