"""Text from the user's files, held to be text."""

import json
from typing import Any

from tc_jepa.errors import UserError

LIMIT = 1 << 20  # bytes of one line of captions.jsonl, and of one text beside an image


def parse(raw: bytes, where: str, form: str) -> dict[str, Any]:
    """A JSON object. Raises UserError, which ends with `form`, where `raw` is none."""
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = str(error).split(":")[0]  # what follows counts lines within this one
        raise UserError(f"{where} is not JSON ({reason}); {form}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not a JSON object; {form}")
    return entry


def string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        shown = repr(value) if len(repr(value)) <= 80 else f"a {type(value).__name__}"
        raise UserError(f'{where}: "{key}" holds {shown}, which is not a string; put it in quotes')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise UserError(f'{where}: "{key}" holds {value!r}, which is not Unicode; remove that character') from error
    return value


def strings(value: Any, key: str, where: str) -> list[str]:
    if not isinstance(value, list):
        raise UserError(f'{where}: "{key}" is not a list of strings; write ["...", "..."], or [] for none')
    return [string(item, key, where) for item in value]


def string_or_strings(value: Any, key: str, where: str) -> list[str]:
    return strings(value, key, where) if isinstance(value, list) else [string(value, key, where)]


def class_name(name: str, where: str) -> str:
    if name.splitlines() != [name.strip()]:  # TFDS keeps class names in a text file, one a line
        raise UserError(f"{where}: {name!r} is no class name; give words on one line, without space around them")
    return name
