"""Errors that a user can cause; the command line prints them as one line and exits with code 2."""


class UserError(Exception):
    """One line that names the file, record or field, what is wrong with it and what to do."""


class BadRecord(UserError):
    """A record whose data cannot be used: it is set aside with this reason and counted."""
