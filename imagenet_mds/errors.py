"""Errors with a message for the user, and the exit statuses of all commands.

A message says what is wrong, where, and what to do. These errors are printed as one line on standard error, without a
traceback. Any other exception is a bug of the program and keeps its traceback.
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_LASTING = 78
"""Failed, and would fail again in the same way until somebody changes something: a full disk, a loss that is no number
(EX_CONFIG of sysexits). After any other failure the same command may get further."""
EXIT_STOPPED = 75
"""Stopped cleanly before the end; the same command continues (EX_TEMPFAIL of sysexits)."""


class CommandError(Exception):
    """The command cannot continue. The message is for the user who typed it."""

    exit_status = EXIT_FAILED


class UserError(CommandError):
    """The user's input cannot be used. The message says how to fix it."""

    exit_status = EXIT_USER


class WorldError(CommandError):
    """The environment failed: a full disk, a broken shard, a lost process. Finished work is kept."""

    exit_status = EXIT_FAILED


class LastingError(WorldError):
    """The environment failed, and will fail again until somebody changes something. Finished work is kept."""

    exit_status = EXIT_LASTING
