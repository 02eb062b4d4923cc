"""Errors that are for people, and the exit statuses of every command.

A message says what is wrong, where, and what to do. Errors of these kinds are printed as one line on standard error,
without a traceback; every other exception is a defect of ours and keeps its traceback.
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 75
"""Stopped in good order before the end and ready to continue: run the same command again (EX_TEMPFAIL of sysexits)."""


class CommandError(Exception):
    """A command cannot go on. The message is for the person who typed it."""

    exit_status = EXIT_FAILED


class UserError(CommandError):
    """What the user gave cannot be used; the message names the mend."""

    exit_status = EXIT_USER


class WorldError(CommandError):
    """The world failed: a full disk, a broken shard, a lost process. What was complete stays."""

    exit_status = EXIT_FAILED
