"""Errors that a user can cause; the command line prints them as one line and exits with their code."""


class UserError(Exception):
    """One line that names the file, record or field, what is wrong with it and what to do."""

    # Launchers do not start the same command again after 2 (tools/launch/README.md).
    code = 2


class Again(UserError):
    """What has been mended or may pass: the same command may succeed."""

    code = 1


class NotFinite(UserError):
    """A computation gave NaN or infinity: the command was understood, its result is of no use."""

    code = 1


class BadRecord(UserError):
    """A record whose data cannot be used: it is set aside with this reason and counted."""
