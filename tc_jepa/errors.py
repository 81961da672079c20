"""The one exception that a user's bad input may end in."""


class UserError(Exception):
    """Bad input. The message is one line that names the thing and the mend; launchers print it and exit with 2."""
