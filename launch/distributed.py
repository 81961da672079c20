"""The flag --distributed, for commands that run on several hosts together."""

import atexit
from collections.abc import Callable, Sequence
import functools
import os
import re
import sys
import traceback

from absl import flags

from tc_jepa.errors import UserError
from tc_jepa.storage.faults import fault_of

DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    None,
    "For several hosts, which all run this command and see the same files: 'auto' where JAX detects the cluster (Cloud "
    "TPU pods, Slurm, Open MPI, Kubernetes), else HOST:PORT,INDEX,COUNT: the address of process 0, the index of this "
    "process and the number of processes.",
)

_watch = None  # of the other processes, once they are joined


def start(*, stops_together: bool) -> None:
    """Joins the processes of --distributed. Must be called before JAX is used. Only the first process prints.

    With `stops_together`, JAX's preemption service handles SIGTERM from now on (tc_jepa.distributed.stop_signals);
    else SIGTERM ends the process. From now on this process ends where another one does without an error of its own
    (tc_jepa.distributed.watch). Raises UserError where the flag is malformed or the processes cannot be joined.
    """
    global _watch
    if DISTRIBUTED.value is None:
        return
    import jax

    from tc_jepa.distributed.processes import from_first
    from tc_jepa.distributed.relay import relayed
    from tc_jepa.distributed.watch import Watch

    jax.config.update("jax_enable_preemption_service", stops_together)
    arguments = {}
    if DISTRIBUTED.value != "auto":
        found = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", DISTRIBUTED.value)
        if not found or int(found[2]) >= int(found[3]):
            raise UserError(
                f"--distributed={DISTRIBUTED.value}: give auto or HOST:PORT,INDEX,COUNT, such as 10.0.0.1:1234,0,4",
                about="distributed",
            )
        arguments = {"coordinator_address": found[1], "process_id": int(found[2]), "num_processes": int(found[3])}
        if arguments["process_id"]:
            arguments["coordinator_address"] = relayed(found[1])
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        advice = "" if arguments else "; where JAX detects no cluster, give HOST:PORT,INDEX,COUNT"
        raise UserError(f"--distributed={DISTRIBUTED.value}: {reason}{advice}", about="distributed") from error
    if jax.process_count() > 1:
        host = DISTRIBUTED.value.rpartition(":")[0].strip("[]") or None  # None for auto
        _watch = Watch(jax.process_index(), host, from_first)
        atexit.register(_watch.close)  # not where this process fails, as that ends in `leave`
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")


def watched(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """Returns `main`, which in one of several processes ends the process at any error.

    An error may follow from the end of another process; then that is what is said.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except (UserError, SystemExit):
            raise
        except BaseException as error:
            if _watch is None or fault_of(error):
                raise
            _watch.wait()
            traceback.print_exc()
            leave(1)

    return run


def leave(status: int) -> None:
    """Exits with `status` after an error. One of several processes does not wait for the others, which end then too."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        if _watch is not None:
            _watch.fail()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
