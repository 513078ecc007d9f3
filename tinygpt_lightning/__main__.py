"""``python -m tinygpt_lightning``."""

import signal

# The libraries take seconds to load: Ctrl-C ends that without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from tinygpt_lightning.commands.main import main  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
