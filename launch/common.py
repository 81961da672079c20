"""What the commands share: one way to start, and one way to fail."""

from collections.abc import Callable, Sequence
import difflib
import re
import sys

from absl import app

from configs import base
from tc_jepa.errors import UserError

CONFIG_FLAG = "config"


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses the flags and calls `main`; a UserError becomes one line on stderr and exit status 2."""
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse(argv: Sequence[str]) -> list[str]:
    """Flags as absl reads them, with one line for what goes wrong. Words that are no flag are refused, not ignored."""
    for argument in argv[1:]:
        name, dot, key = argument.lstrip("-").partition("=")[0].partition(".")
        if argument.startswith("-") and name == CONFIG_FLAG and dot:
            _check_key(key)
    try:
        rest = app.parse_flags_with_usage(list(argv))
    except FileNotFoundError as error:
        raise UserError(f"--config: there is no file {error.filename}; give a path such as configs/quickstart.py") from error
    except (AttributeError, KeyError) as error:  # a config file that sets a key which configs/base.py does not declare
        reason, _, _ = str(error.args[0]).partition(". Other fields present")
        guess = re.search(r'Did you mean "(.+?)"', str(error.args[0]))
        mend = f"; did you mean {guess[1]!r}?" if guess else ""
        raise UserError(f"--config: {' '.join(reason.split())}; keys are declared in configs/base.py{mend}") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return rest


def _check_key(name: str) -> None:
    names = [key.name for key in base.KEYS]
    if name not in names and not any(known.startswith(name + ".") for known in names):
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(f"--config.{name} is no key of configs/base.py; did you mean --config.{nearest}?")
