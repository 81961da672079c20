"""Kernels for TPUs against XLA's own programs: interpreted on the CPU, so that every product is exact float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.distributed import sharding
from tc_jepa.models import layers
from tc_jepa.models.conditioners.word_cross_attention import CrossAttentionForm, WordCrossAttention
from tc_jepa.models.kernels.attention import attend
from tc_jepa.models.kernels.backend import Backend, PLAIN, tpu_backend
from tests import tiny

KERNELS = tpu_backend(interpret=True)
FORMS = ({}, {"fuse_first": True}, {"post_norm": False, "heads": 2}, {"mlp_ratio": 2.0})


@pytest.mark.parametrize("padded", [False, True])
def test_the_attention_kernel_computes_what_xla_does(padded):
    rng = np.random.default_rng(0)
    lengths, heads = np.array([10, 4, 7]) if padded else np.array([10, 10, 10]), 2
    qkv = jnp.asarray(rng.standard_normal((3, 10, 3 * 16)), jnp.float32)
    valid = jnp.arange(10) < lengths[:, None]
    weights = jnp.asarray(rng.standard_normal((3, 10, 16)), jnp.float32) * valid[..., None]

    def loss(function, qkv):
        return jnp.sum(function(qkv, valid if padded else None, heads) * weights)

    for transform in (lambda f: f, jax.grad):
        ours, theirs = (transform(functools.partial(loss, function))(qkv) for function in (KERNELS.attend, attend))
        assert_close(ours, theirs)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_step_with_kernels_has_the_gradients_of_one_without(form):
    batch = tiny.batch(4)
    assert_close(*(gradients(jepa(backend, **form), batch, jepa(PLAIN, **form)) for backend in (PLAIN, KERNELS)))


def test_each_device_computes_its_own_images():
    mesh = sharding.make_mesh(4, 2)
    sharded = tpu_backend(sharding.constrain_to(mesh), sharding.on_each_device(mesh), interpret=True)
    batch = tiny.batch(8)
    expected = gradients(jepa(KERNELS), batch, jepa(PLAIN))
    place = functools.partial(sharding.put_parameters, mesh)
    assert_close(expected, gradients(jepa(sharded), sharding.put_batch(mesh, batch), jepa(PLAIN), place))


def jepa(backend: Backend, **form):
    conditioner = WordCrossAttention(layers.Linear(), form=CrossAttentionForm(**form), backend=backend)
    return tiny.jepa(conditioner, backend=backend)


def gradients(method, batch, initial, place=lambda x: x):
    params, extra = initial.init(jax.random.key(0), jax.tree.map(lambda x: x[0], tiny.batch(1)), {})

    def loss(params, batch):
        return method.loss(params, extra, batch, jax.random.key(1), jnp.int32(5))[0]

    return jax.jit(jax.grad(loss))(place(params), batch)


def assert_close(a, b, tolerance=1e-5):
    """Trees agree within `tolerance` of their norm."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    difference = sum(float(jnp.sum((x - y) ** 2)) for x, y in pairs)
    assert difference <= tolerance**2 * sum(float(jnp.sum(x**2)) for x, _ in pairs)
