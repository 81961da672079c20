"""The one exception that a user's bad input may end in."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong and how to fix it; launchers print it and exit with
    `status`.

    Lines of the message, which may quote a library's, are joined to one.
    `about` names the configuration key, flag or file at fault, for callers and tests; "" where there is not one.
    """

    status = 2

    def __init__(self, message: str, *, about: str = ""):
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
        self.about = about
