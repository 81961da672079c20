"""The flag --distributed, for commands that run on several hosts together."""

import os
import re
import sys

from absl import flags

from tc_jepa.errors import UserError

DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    None,
    "For several hosts, which all run this command and see the same files: 'auto' where JAX detects the cluster (Cloud "
    "TPU pods, Slurm, Open MPI, Kubernetes), else HOST:PORT,INDEX,COUNT: the address of process 0, the index of this "
    "process and the number of processes.",
)


def start(*, stops_together: bool) -> None:
    """Joins the processes of --distributed. Must be called before JAX is used. Only the first process prints.

    With `stops_together`, JAX's preemption service handles SIGTERM from now on (tc_jepa.distributed.stop_signals);
    else SIGTERM ends the process. Raises UserError where the flag is malformed or the processes cannot be joined.
    """
    if DISTRIBUTED.value is None:
        return
    import jax

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
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        advice = "" if arguments else "; where JAX detects no cluster, give HOST:PORT,INDEX,COUNT"
        raise UserError(f"--distributed={DISTRIBUTED.value}: {reason}{advice}", about="distributed") from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")


def leave(status: int) -> None:
    """Exits with `status` after an error. One of several processes does not wait for the others: JAX ends them then."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)
