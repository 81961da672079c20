"""Checked texts and JSON from the user's files."""

from typing import Any

from tc_jepa.errors import UserError
from tc_jepa.storage.reading import parse_json

LIMIT = 1 << 20  # bytes of one line of captions.jsonl, and of one text file in a tar


def parse(raw: bytes, where: str, expected: str) -> dict[str, Any]:
    """A JSON object, NaN and Infinity as null. UserError for anything else; `expected` says what to write instead."""
    try:
        entry = parse_json(raw)
    except ValueError as error:
        reason = str(error).split(":")[0]  # the rest is a position within this line
        raise UserError(f"{where} is not JSON ({reason}); {expected}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not a JSON object; {expected}")
    return entry


def string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        shown = repr(value) if len(repr(value)) <= 80 else f"a {type(value).__name__}"
        raise UserError(f'{where}: "{key}" is {shown}, not a string; put it in quotes')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can contain half a surrogate pair
        raise UserError(f'{where}: "{key}" {value!r} is not valid Unicode; remove that character') from error
    return value


def strings(value: Any, key: str, where: str) -> list[str]:
    if not isinstance(value, list):
        raise UserError(f'{where}: "{key}" is not a list of strings; write ["...", "..."], or [] for none')
    return [string(item, key, where) for item in value]


def string_or_strings(value: Any, key: str, where: str) -> list[str]:
    return strings(value, key, where) if isinstance(value, list) else [string(value, key, where)]


def class_name(name: str, where: str) -> str:
    """`name`. Raises UserError unless it is one line without space around it: TFDS stores one class name per line."""
    if name.splitlines() != [name.strip()]:
        raise UserError(f"{where}: {name!r} is not a class name; use words on one line, without space around them")
    return name
