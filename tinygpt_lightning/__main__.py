"""``python -m tinygpt_lightning``."""

from tinygpt_lightning.cli import main

main()
