"""Whether all values of parameters are finite."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.errors import UserError


def non_finite(tree: Any) -> list[str]:
    """Returns the paths of the arrays that hold a NaN or an infinity, as "['encoder']['kernel']".

    The arrays are all on the host or all on devices, sharded in any way.
    """
    on_host = all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
    finite = jax.tree.map(_on_host, tree) if on_host else jax.device_get(_on_devices(tree))
    return [jax.tree_util.keystr(path) for path, all_are in jax.tree_util.tree_leaves_with_path(finite) if not all_are]


def check_finite(path: str | os.PathLike, params: Any) -> None:
    """Raises UserError where `path` holds parameters that are not finite."""
    if found := non_finite(params):
        raise UserError(f"{path} holds values that are not finite, in {found[0]}; give an older step, or another path")


def _on_host(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all())


@jax.jit
def _on_devices(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
