"""The command line. Each command imports its stage when it runs, so that `--help` answers at once, without torch."""

from imagenet_mds.cli.app import app, main

__all__ = ["app", "main"]
