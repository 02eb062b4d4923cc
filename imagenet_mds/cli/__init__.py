"""The command line, one module per command. A command imports its stage when it runs, so that `--help` is fast."""

from imagenet_mds.cli.app import app, main

__all__ = ["app", "main"]
