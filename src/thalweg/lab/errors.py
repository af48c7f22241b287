"""Errors that are the user's to mend."""


class UserError(Exception):
    """One line that says what is wrong and what to do; the command line prints it and exits with code 2."""
