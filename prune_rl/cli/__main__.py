"""`python -m prune_rl.cli`, which is `prune-rl`."""

import sys

from prune_rl.__main__ import main

sys.exit(main())
