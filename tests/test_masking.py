"""Masks: disjoint, within their budgets, unbiased at the borders, finite on any grid."""

import pickle

import numpy as np
import pytest

from tc_jepa.errors import UserError
from tc_jepa.masking import BlockMasks

SETTINGS = {
    "target_blocks": 4,
    "target_scale": (0.15, 0.2),
    "target_aspect": (0.75, 1.5),
    "context_scale": (0.85, 1.0),
    "context_aspect": (1.0, 1.0),
    "context_tokens": 80,
    "min_context": 10,
}


def sampler(grid, **changes):
    return BlockMasks(grid, **(SETTINGS | {"context_tokens": min(80, grid[0] * grid[1])} | changes))


def draws(masks, count, seed=0):
    return [masks.draw_at(seed, i) for i in range(count)]


def chosen(indices, valid):
    return [set(row[keep]) for row, keep in zip(np.atleast_2d(indices), np.atleast_2d(valid), strict=True)]


def assert_same(one, other):
    for name, x, y in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
        assert x.dtype == y.dtype


def test_draws_are_a_function_of_seed_and_index():
    masks = sampler((14, 14))
    forward = draws(masks, 12)
    for i in (7, 0, 11, 4):
        assert_same(pickle.loads(pickle.dumps(masks)).draw_at(0, i), forward[i])
    contexts = {mask.context_indices.tobytes() for mask in forward + draws(masks, 12, seed=1)}
    assert len(contexts) == 24


def test_context_and_targets_are_disjoint_and_padding_is_marked():
    for mask in draws(sampler((14, 14)), 200):
        (context,), targets = (
            chosen(mask.context_indices, mask.context_valid),
            chosen(mask.target_indices, mask.target_valid),
        )
        assert all(not context & target for target in targets)
        assert len(context) == mask.context_valid.sum() >= 10
        assert not mask.context_indices[~mask.context_valid].any()
        assert all(len(target) == keep.sum() for target, keep in zip(targets, mask.target_valid, strict=True))


def test_targets_are_rectangles_of_the_asked_area_and_aspect():
    for mask in draws(sampler((14, 14)), 200):
        for target in chosen(mask.target_indices, mask.target_valid):
            rows, columns = np.divmod(sorted(target), 14)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert len(target) == height * width
            assert 0.15 * 196 * 0.8 <= len(target) <= 0.2 * 196 * 1.2
            assert 0.5 < height / width < 2


@pytest.mark.parametrize(("grid", "largest"), [((14, 14), 42), ((16, 16), 56), ((9, 9), 20)])
def test_target_budget_is_the_largest_block_that_occurs(grid, largest):
    masks = sampler(grid)
    assert masks.target_tokens == largest
    assert max(mask.target_valid.sum(axis=-1).max() for mask in draws(masks, 3000)) == largest


def test_every_patch_is_reached_as_target_and_as_context():
    masks = sampler((8, 8))
    targets, contexts = np.zeros(64), np.zeros(64)
    for mask in draws(masks, 2000):
        np.add.at(targets, mask.target_indices[mask.target_valid], 1)
        np.add.at(contexts, mask.context_indices[mask.context_valid], 1)
    assert targets.min() > 0 and contexts.min() > 0


def test_scale_and_aspect_are_drawn_apart():
    # The official code uses one draw for both, so that its small blocks are always wide (ijepa multiblock.py:56-63).
    shapes = set()
    for mask in draws(sampler((14, 14)), 500):
        for target in chosen(mask.target_indices, mask.target_valid):
            rows, columns = np.divmod(sorted(target), 14)
            shapes.add((np.ptp(rows) + 1, np.ptp(columns) + 1))
    assert {(5, 6), (6, 5)} <= shapes and {(8, 5), (5, 7)} <= shapes


def test_surplus_context_is_dropped_evenly_over_the_image():
    # Cutting ascending indices, as the official code does, would drop the bottom of the image.
    kept = np.zeros(196)
    for mask in draws(sampler((14, 14), context_tokens=30, context_scale=(1.0, 1.0)), 3000):
        np.add.at(kept, mask.context_indices[mask.context_valid], 1)
        hidden = set().union(*chosen(mask.target_indices, mask.target_valid))
        assert mask.context_dropped == 196 - len(hidden) - 30
        assert mask.context_valid.all()
        assert (np.diff(mask.context_indices) > 0).all()
    top, bottom = kept.reshape(14, 14)[:7].sum(), kept.reshape(14, 14)[7:].sum()
    assert abs(top - bottom) / (top + bottom) < 0.02


@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (3, 8)])
def test_small_grids_terminate_and_keep_enough_context(grid):
    masks = sampler(grid, min_context=grid[0] * grid[1] * 2 // 3)
    for mask in draws(masks, 300):
        assert mask.context_valid.sum() >= masks.min_context


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"min_context": 60}, "leaves fewer than masking.min_context=60"),
        ({"context_tokens": 65}, "masking.context_tokens=65"),
        ({"context_tokens": 5}, "masking.context_tokens=5"),
        ({"target_scale": (0.2, 0.1)}, "masking.target_scale"),
        ({"target_scale": (0.5, 1.5)}, "masking.target_scale"),
        ({"target_aspect": (0.0, 1.0)}, "masking.target_aspect"),
        ({"target_blocks": 0}, "masking.target_blocks=0"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, named):
    with pytest.raises(UserError, match=named.replace("(", r"\(")):
        sampler((8, 8), **({"context_tokens": 60} | changes))
