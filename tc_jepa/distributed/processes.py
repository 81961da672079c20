"""One process on every host of a pod: which of them writes, and where they wait for each other."""

import itertools
from typing import Any

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from tc_jepa.errors import UserError

LONGEST_WAIT = 24 * 3600  # seconds; when a process dies, JAX ends the others much sooner

_places = itertools.count()


def is_first() -> bool:
    """Whether this process is the one that writes what all of them know. A single process is."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here; at once in a single process. All come to the same places in turn.

    Unlike a collective of the devices it may be waited at for long.
    """
    if jax.process_count() > 1:
        if not jax.distributed.is_initialized():
            raise UserError(f"this is one of {jax.process_count()} processes; give each --distributed=auto")
        everyone = set(range(jax.process_count()))
        place = f"{name}, place {next(_places)}"  # JAX lets a name be used once
        ocp.multihost.sync_global_processes(place, timeout=LONGEST_WAIT, processes=everyone)


def to_each(tree: Any) -> Any:
    """Arrays that lie over the devices of several processes, whole and on the host of each; all must call it together.

    A single process keeps them where they are.
    """
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree
