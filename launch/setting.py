"""The flag --set=KEY=VALUE of the commands that start from a configuration which exists already."""

import ast
from collections.abc import Mapping
from typing import Any

from absl import flags

from configs import base
from tc_jepa.errors import UserError

SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the configuration; may be repeated.")


def assignment(text: str) -> tuple[str, Any]:
    """The key and the value of a --set=KEY=VALUE. The value is a Python literal unless the key's default is a string.

    UserError for anything else and for an unknown key.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set={text}: give KEY=VALUE, such as --set=train.steps=1000", about="set")
    if isinstance(base.KEYS.named(name).default, str):
        return name, value
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--set={text}: {value!r} is not a number, True, False or tuple", about=name) from error


def apply(config, settings: Mapping[str, Any]) -> None:
    """Sets keys of a configuration by their full names. UserError for a key or a value that is not allowed."""
    for name, value in settings.items():
        base.KEYS.named(name).check(value)
        config.update_from_flattened_dict({name: value})
