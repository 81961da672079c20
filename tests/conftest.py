"""Every test sees eight fake CPU devices, so that sharding is tested on any laptop. Set before JAX starts.

Programs are compiled without LLVM's optimisations: most of the suite's time goes into compiling.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

import jax  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import pytest  # noqa: E402

# Orbax would have each of the eight devices save an eighth of every array, and compile a program for each such part.
# The commands that tests start in processes of their own do so.
whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
ocp.type_handlers.register_type_handler(jax.Array, whole, override=True)


@pytest.fixture(scope="session", autouse=True)
def compile_each_program_once(tmp_path_factory):
    """Runs that differ only in how they are stopped compile the same programs, which takes most of the time."""
    session = tmp_path_factory.getbasetemp()
    shared = session.parent if "PYTEST_XDIST_WORKER" in os.environ else session
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # The commands that tests start compile the same programs, too.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
