"""``loko-ref lte`` in which one rank fails at one step: faulty.py KIND RANK STEP ARGUMENTS...

At step -1 it ends before it has joined the others, with exit code 0 (vanish) or 1 (raise).
"""

import os
import signal
import sys

from loko_ref.cli import main
from loko_ref.lte import serial

real = serial.step


def failing(kind, rank, at):
    """The step, made to fail in one way on one rank."""

    def step(config, state, x, y, team, **more):
        if team.rank == rank and state.step == at:
            if kind == "raise":
                raise RuntimeError("made to fail")
            if kind == "exit":
                sys.exit(0)
            if kind == "vanish":
                os._exit(0)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "diverge":
                state.theta[...] = float("nan")
        return real(config, state, x, y, team, **more)

    return step


if __name__ == "__main__":
    kind, rank, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if at == -1 and str(rank) == os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")):
        os._exit(kind == "raise")
    serial.step = failing(kind, rank, at)
    sys.argv = ["loko-ref", *sys.argv[4:]]
    main()
