"""Coordination of the processes of one command, one on every host: who writes, and where all wait for each other."""

import itertools
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from tc_jepa.errors import UserError
from tc_jepa.storage.partial import Processes

LONGEST_WAIT = 24 * 3600  # seconds; when one process dies, JAX ends the others much sooner

PLACE_BYTES = 512

_barriers = itertools.count()


def is_first() -> bool:
    """Returns whether this process writes what all processes hold in common. A single process does."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Blocks until every process has called it; all must make the same calls in the same order.

    Unlike a collective operation of the devices it may block for long, LONGEST_WAIT at most.
    """
    if jax.process_count() > 1:
        if not jax.distributed.is_initialized():
            raise UserError(f"this is one of {jax.process_count()} processes; start each with --distributed=auto")
        everyone = set(range(jax.process_count()))
        barrier = f"{name}, barrier {next(_barriers)}"  # JAX allows each name once
        ocp.multihost.sync_global_processes(barrier, timeout=LONGEST_WAIT, processes=everyone)


def all_processes() -> Processes:
    """Returns the processes of this command, to share work on files."""
    return Processes(jax.process_index(), jax.process_count(), wait_for_all)


def to_each(tree: Any) -> Any:
    """Returns arrays that are sharded over several processes as whole arrays on the host of each.

    All processes must call it together. A single process gets the arrays as they are.
    """
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree


def from_first(content: bytes) -> bytes:
    """Returns, in every process, the bytes that process 0 gives, PLACE_BYTES at most; what the others give is ignored.

    All processes must call it together.
    """
    codes = np.zeros(PLACE_BYTES, np.int32)
    codes[: len(content)] = list(content)
    return bytes(multihost_utils.broadcast_one_to_all(codes).tolist()).rstrip(b"\0")


def any_process(value: bool) -> bool:
    """Returns whether `value` is true in any process. All processes must call it together."""
    return bool(np.any(to_each(np.array([value]))))
