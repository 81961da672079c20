"""The flag --set=KEY=VALUE of the commands that begin from a configuration which exists already."""

import ast
from collections.abc import Mapping
from typing import Any

from absl import flags

from configs import base
from launch import common
from tc_jepa.errors import UserError

SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the configuration; may be repeated.")


def assignment(text: str) -> tuple[str, Any]:
    """A --set=KEY=VALUE as the key and its value, which is read as Python where the key's default is no string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set={text}: give KEY=VALUE, such as --set=train.steps=1000")
    common.check_key(name)
    if isinstance(base.flatten(base.get_config())[name], str):
        return name, value
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--set={text}: {value!r} is no number, True, False or tuple") from error


def apply(config, settings: Mapping[str, Any]) -> None:
    """Sets keys of a configuration by their full names."""
    for name, value in settings.items():
        common.check_key(name)
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            raise UserError(f"{name}={value!r} is of the wrong type: {' '.join(str(error).split())}") from error
