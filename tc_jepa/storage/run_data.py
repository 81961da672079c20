"""The record in a workdir of the data that its run reads, so that a resume with other data is refused.

WORKDIR/data.json holds, by configuration key (data.path, captions.vectors, captions.vocabulary, model.text_weights), a
list with the identity of each folder or file that the key names. It holds no paths: a copy in another place is the same
data.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from tc_jepa.errors import UserError
from tc_jepa.storage.files import replace_text, short_hash
from tc_jepa.storage.reading import parse_json

DATA_FILE = "data.json"
VECTORS = "captions.vectors"
WORDS_FILE = "words.json"  # written by versions before data.json: the identities of captions.vectors alone


class Held(NamedTuple):
    """A folder or file with its identity: JSON without paths, equal for equal contents."""

    path: str
    identity: Any


Found = Mapping[str, Sequence[Held]]  # by configuration key, in the order of its paths


def recorded(workdir: Path) -> dict[str, list[Any]]:
    """The identities that a workdir records, by configuration key; empty where there is no record.

    Raises UserError for a record that cannot be read.
    """
    for path, key in ((workdir / DATA_FILE, None), (workdir / WORDS_FILE, VECTORS)):
        if path.is_file():
            fix = "restore it, or delete it to record the data anew"
            try:
                found = parse_json(path.read_text()) if key is None else {key: parse_json(path.read_text())}
            except ValueError as error:
                raise UserError(f"{path} cannot be read ({error}); {fix}") from error
            if not isinstance(found, dict) or not all(isinstance(one, list) for one in found.values()):
                raise UserError(f"{path} is not a record of data; {fix}")
            return found
    return {}


def check_data(workdir: Path, found: Found) -> None:
    """Raises UserError, naming the first difference, where a run's data is not what its workdir records."""
    advice = "restore that data, or give another --workdir"
    for key, identities in recorded(workdir).items():
        held = found.get(key, ())
        if len(held) != len(identities):
            raise UserError(f"{workdir} was trained with {len(identities)} of {key}, not {len(held)}; {advice}")
        for was, (path, now) in zip(identities, held, strict=True):
            if change := difference(was, now, f"{key}={path}"):
                raise UserError(f"{workdir} was trained on other data: {change}; {advice}")


def record_data(workdir: Path, found: Found, *, resumed: bool) -> None:
    """Writes the record; only one process may call it. Logs what a resumed run had not recorded yet."""
    absent = sorted(found.keys() - recorded(workdir).keys())
    if resumed and absent:
        logging.warning("%s has no record of what %s held; it is recorded now", workdir, ", ".join(absent))
    if found:
        identities = {key: [held.identity for held in several] for key, several in found.items()}
        replace_text(workdir / DATA_FILE, json.dumps(identities, indent=2) + "\n")


def difference(was: Any, now: Any, name: str) -> str | None:
    """The first difference between two identities, such as "NAME: splits: train: images was 900, is 800"."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*was, *(key for key in now if key not in was)]
        return next(filter(None, (difference(was.get(key), now.get(key), f"{name}: {key}") for key in keys)), None)
    return None if was == now else f"{name} was {_named(was)}, is {_named(now)}"


def _named(identity: Any) -> str:
    if identity is None:
        return "absent"
    return "present" if isinstance(identity, dict) else short_hash(identity)
