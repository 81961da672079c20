"""Silencing what libraries print of errors that are raised as well: hundreds of lines of one fault.

Orbax reads and writes many arrays at once and raises the first error. What the others meet has nobody to go to.
"""

import functools
import logging
import sys
import types

from absl import logging as absl_logging

_ORBAX = "/orbax/checkpoint/"


@functools.cache
def silence_orbax() -> None:
    """Drops, from now on, what is printed of errors in a save or a restore after the first, which Orbax raises.

    These are the errors that Orbax logs from its threads, those of reads that it no longer waits for, which asyncio
    logs, and those of TensorStore's late calls to a loop that is closed.
    """
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
    logging.getLogger("asyncio").addFilter(_was_waited_for)  # Orbax alone uses asyncio here
    before = sys.unraisablehook

    def show(unraisable) -> None:
        if not _is_late(unraisable):
            before(unraisable)

    sys.unraisablehook = show


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or _ORBAX not in record.pathname


def _was_waited_for(record: logging.LogRecord) -> bool:
    return not record.getMessage().partition("\n")[0].endswith("exception was never retrieved")


def _is_late(unraisable) -> bool:
    """Says whether TensorStore called a loop that is closed, or a coroutine of Orbax is deleted with its error."""
    if unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed":
        return True
    deleted = unraisable.object
    return isinstance(deleted, types.CoroutineType) and _ORBAX in deleted.cr_code.co_filename
