"""How the networks' operations are laid over devices, and by which programs they are computed."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from tc_jepa.models.kernels.attention import Attend, attend
from tc_jepa.models.kernels.caption_maximum import maximum_over_captions

# (function of shared and batched arrays, shared, *batched) -> its result, where batched arrays and the result have a
# leading axis whose sections the devices hold, and each device runs the function on its own.
OnEachDevice = Callable[..., Any]


def on_one_device(function: Callable[..., Any], shared: Any, *batched: Any) -> Any:
    """Returns function(shared, *batched): the OnEachDevice of a single device."""
    return function(shared, *batched)


@dataclasses.dataclass(frozen=True)
class Backend:
    """The default is one device and XLA's own programs, on any hardware.

    constrain: shards the leading axis of an activation over all devices.
    attend: as attention.attend.
    maximum_over_captions: as caption_maximum.maximum_over_captions.
    """

    constrain: Callable[[jax.Array], jax.Array] = lambda x: x
    attend: Attend = attend
    maximum_over_captions: Callable[..., jax.Array] = maximum_over_captions


PLAIN = Backend()


def plain_backend(constrain: Callable[[jax.Array], jax.Array], on_each_device: OnEachDevice) -> Backend:
    """Returns a backend with XLA's own programs."""
    del on_each_device
    return Backend(constrain)


def tpu_backend(
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    on_each_device: OnEachDevice = on_one_device,
    interpret: bool = False,
) -> Backend:
    """Returns a backend with our kernels for TPUs. With `interpret` they run on any hardware, slowly: for tests."""
    from tc_jepa.models.kernels import tpu_attention, tpu_caption_maximum

    return Backend(
        constrain,
        tpu_attention.Attend(on_each_device, interpret),
        tpu_caption_maximum.MaximumOverCaptions(on_each_device, interpret),
    )


BACKENDS = {"plain": plain_backend, "tpu": tpu_backend}  # the values of model.kernels; not plain: only on such devices
