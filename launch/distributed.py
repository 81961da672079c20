"""The flag --distributed of the commands that run on several hosts at once."""

import os
import re
import sys

from absl import flags

from tc_jepa.errors import UserError

DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    None,
    "On several hosts, each of which runs this same command: 'auto' where JAX knows the cluster (a Cloud TPU pod, "
    "Slurm, Open MPI, Kubernetes), else HOST:PORT,INDEX,COUNT, the address of process 0, which process this is, and "
    "how many there are. All must see the same files.",
)


def start(*, stops_together: bool) -> None:
    """Joins the processes of --distributed; before anything else of JAX. Only the first of them prints.

    `stops_together`: JAX takes SIGTERM from now on, for those who ask it when all should stop; else it ends a process.
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
                f"--distributed={DISTRIBUTED.value}: give auto, or such as 10.0.0.1:1234,0,4 on host 0 of 4"
            )
        arguments = {
            "coordinator_address": found[1],
            "process_id": int(found[2]),
            "num_processes": int(found[3]),
        }
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        mend = "; where JAX knows no cluster give HOST:PORT,INDEX,COUNT" if not arguments else ""
        raise UserError(f"--distributed={DISTRIBUTED.value}: {reason}{mend}") from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")


def leave(status: int) -> None:
    """Ends this process after an error. One of several does not wait for the others, which JAX ends when it is gone."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)
