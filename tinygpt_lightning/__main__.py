"""``python -m tinygpt_lightning`` and the script ``tinygpt``."""

import os
import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends the imports, which take seconds, without a traceback."""
    # Threads that wait for each other sleep soon: spinning, they slow each other down tenfold on a busy machine; at
    # once, an idle one takes half as long again. Both are read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tinygpt_lightning.commands.main import main as run

    signal.signal(signal.SIGINT, before)
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
