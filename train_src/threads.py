"""How the threads of a matrix product wait for each other, on CPU.

Import this before torch: its OpenMP library (GNU's) reads the environment once, as it is loaded.
"""

import os
from collections.abc import MutableMapping

# Turns of the waiting loop, some 50 ns each. Between two products of a step lie 20 to 100 microseconds.
SPINS = "3000"
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have a thread that waits give its processor up after 0.2 ms instead of 5, unless the user has set it otherwise.

    On a machine of its own that costs nothing to speak of. Where anything else runs, a browser or a notebook, the thread
    that the others wait for may be the one without a processor, and each product took them 8 ms.
    """
    if not any(name in environment for name in SETTINGS):
        environment["GOMP_SPINCOUNT"] = SPINS
