"""Hi-Dreamer: discrete hierarchical representations in Atari world models.

Importing hd settles how torch's threads wait for each other. By themselves they spin without end,
so that beside another busy program each step takes several times as long: whoever waits keeps the
processor that the other thread needs. After 1500 turns they sleep instead. OpenMP reads this when
torch is loaded: where torch was imported before hd, nothing can be done. What the user has set
about it stays, and the processes that this one starts inherit either.
"""

import os as _os
import sys as _sys

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of them is a user's choice

if "torch" not in _sys.modules and not any(name in _os.environ for name in _WAITING):
    # More turns cost more beside a busy process; fewer cost dreams, whose steps are short, when
    # nothing else runs (the benchmark's rows of a small transformer and of dreams show both).
    _os.environ["GOMP_SPINCOUNT"] = "1500"
