"""The one exception that the command line expects."""


class InputError(Exception):
    """Something the user gave can't be used; its message is one line that says what and where."""
