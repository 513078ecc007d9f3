"""``python -m tinygpt_lightning`` and the script ``tinygpt``."""

import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends the imports, which take seconds, without a traceback."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tinygpt_lightning.commands.main import main as run

    signal.signal(signal.SIGINT, before)
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
