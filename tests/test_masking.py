"""Masks are disjoint, within their budgets, and end on any grid; official ones have the released code's statistics."""

import dataclasses
from pathlib import Path
import pickle

import numpy as np
import pytest

from configs import base
from configs.keys import flatten
from tc_jepa.config import jepa
from tc_jepa.config.validate import validate
from tc_jepa.errors import UserError
from tc_jepa.masking import BlockMasks, MASKS, OfficialMasks, RandomMasks

FIXTURES = Path(__file__).parent / "fixtures"

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


def official(grid, group_size, **changes):
    return OfficialMasks(grid, **(SETTINGS | changes), group_size=group_size)


def random(grid, **changes):
    settings = {"target_blocks": 1, "ratio": (0.4, 0.6), "context_tokens": 80, "min_context": 10}
    return RandomMasks(grid, **(settings | changes))


EVERY_KIND = pytest.mark.parametrize(
    "masks", [sampler((14, 14)), official((14, 14), 4), random((14, 14))], ids=["fixed", "official", "random"]
)


def draws(masks, count, seed=0):
    return [masks.draw_at(seed, i) for i in range(count)]


def chosen(indices, valid):
    return [set(row[keep]) for row, keep in zip(np.atleast_2d(indices), np.atleast_2d(valid), strict=True)]


def assert_same(one, other):
    for name, x, y in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
        assert x.dtype == y.dtype


@EVERY_KIND
def test_draws_are_a_function_of_seed_and_index(masks):
    expected = draws(masks, 12)
    for mask in draws(masks, 12):
        mask.context_indices[:], mask.target_valid[:] = 0, False  # writing to a draw changes no later one
    others = draws(masks, 400, seed=1)  # more official groups than a process keeps
    copied = pickle.loads(pickle.dumps(masks))
    for i in (7, 0, 11, 4):
        assert_same(copied.draw_at(0, i), expected[i])
    contexts = {mask.context_indices.tobytes() for mask in expected + others[:12]}
    assert len(contexts) == 24


@EVERY_KIND
def test_context_and_targets_are_disjoint_and_padding_is_marked(masks):
    for mask in draws(masks, 200):
        assert mask.context_indices.shape == (masks.context_tokens,)
        assert mask.target_indices.shape == (masks.target_blocks, masks.target_tokens)
        (context,), targets = (
            chosen(mask.context_indices, mask.context_valid),
            chosen(mask.target_indices, mask.target_valid),
        )
        assert all(not context & target for target in targets)
        assert len(context) == mask.context_valid.sum() >= 10
        assert not mask.context_indices[~mask.context_valid].any()
        assert (np.diff(mask.context_indices[mask.context_valid]) > 0).all()
        assert all(len(target) == keep.sum() for target, keep in zip(targets, mask.target_valid, strict=True))


def test_targets_are_rectangles_of_the_given_area_and_aspect():
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


def test_scale_and_aspect_are_drawn_independently():
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


def refused(build, grid, **changes) -> str:
    """The key that an error is about, which its message names."""
    with pytest.raises(UserError) as error:
        build(grid, **changes)
    assert error.value.about in str(error.value) and "\n" not in str(error.value)
    return error.value.about


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"min_context": 60}, "min_context"),
        ({"min_context": 0}, "min_context"),
        ({"context_tokens": 65}, "context_tokens"),
        ({"context_tokens": 5}, "context_tokens"),
        ({"target_scale": (0.2, 0.1)}, "target_scale"),
        ({"target_scale": (0.5, 1.5)}, "target_scale"),
        ({"target_aspect": (0.0, 1.0)}, "target_aspect"),
        ({"target_blocks": 0}, "target_blocks"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, key):
    assert refused(sampler, (8, 8), **({"context_tokens": 60} | changes)) == f"masking.{key}"


def members(masks, group, seed=0):
    return [masks.draw_at(seed, group * masks.group_size + i) for i in range(masks.group_size)]


def visible(mask, targets):
    """Ascending patches of the official context block at grid 14, always 13 x 13 at (0, 0), without some targets."""
    left = {14 * row + column for row in range(13) for column in range(13)} - set().union(*targets)
    return sorted(left)


@pytest.mark.parametrize("context_tokens", [100, 50])
def test_official_groups_share_sizes_and_are_cut_to_the_shortest_context_and_to_k(context_tokens):
    masks = official((14, 14), 8, context_tokens=context_tokens)
    shapes, shortest_contexts = set(), []
    for group in range(40):
        drawn = members(masks, group)
        blocks = [chosen(mask.target_indices, mask.target_valid) for mask in drawn]
        assert len({len(target) for targets in blocks for target in targets}) == 1
        rows, columns = np.divmod(sorted(blocks[0][0]), 14)
        shapes.add((np.ptp(rows) + 1, np.ptp(columns) + 1))

        shortest = min(len(visible(mask, targets)) for mask, targets in zip(drawn, blocks, strict=True))
        shortest_contexts.append(shortest)
        for mask, targets in zip(drawn, blocks, strict=True):
            expected = visible(mask, targets)[: min(shortest, context_tokens)]  # the top of the image
            np.testing.assert_array_equal(mask.context_indices[mask.context_valid], expected)
            assert mask.context_dropped == max(shortest - context_tokens, 0)
    assert shapes <= {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)} and len(shapes) > 2
    assert min(shortest_contexts) < 50 < max(shortest_contexts) < 100


def test_official_contexts_overlap_the_last_targets_first():
    # The context block of grid 14 cannot move, so that it is known which targets leave more than min_context of it.
    masks = official((14, 14), 1, target_blocks=8, min_context=29, context_tokens=169)
    overlapped = []
    for mask in draws(masks, 600):
        targets = chosen(mask.target_indices, mask.target_valid)
        respected = next(m for m in range(8, -1, -1) if len(visible(mask, targets[:m])) > 29)
        np.testing.assert_array_equal(mask.context_indices[mask.context_valid], visible(mask, targets[:respected]))
        overlapped.append(8 - respected)
    assert {0, 1, 2} <= set(overlapped)


def test_official_contexts_overlap_a_target_after_twenty_tries_only():
    # One target of 10 x 10 patches and a context of 8 x 8, whose corner has 6 x 6 places in the grid of 14 x 14.
    one = {"target_blocks": 1, "target_scale": (0.5, 0.5), "target_aspect": (1.0, 1.0), "context_scale": (0.3, 0.3)}
    masks = official((14, 14), 1, **one, min_context=30)
    overlapping, likely = [], []
    for mask in draws(masks, 600):
        target = np.zeros(196, bool)
        target[mask.target_indices[mask.target_valid]] = True
        overlapping.append(target[mask.context_indices[mask.context_valid]].any())
        blocks = np.lib.stride_tricks.sliding_window_view(target.reshape(14, 14), (8, 8))[:6, :6]
        covered = blocks.sum(axis=(2, 3))
        likely.append(np.mean(64 - covered <= 30) ** 20 * np.mean(covered > 0))
    likely = np.array(likely)
    assert 0.1 < likely.mean() < 0.9
    assert abs(np.sum(overlapping) - likely.sum()) < 5 * np.sum(likely * (1 - likely)) ** 0.5


@pytest.mark.parametrize(
    ("grid", "group_size", "context_tokens", "largest"), [((14, 14), 32, 80, 40), ((16, 16), 8, 128, 54)]
)
def test_official_masks_are_distributed_as_the_released_collators(grid, group_size, context_tokens, largest):
    """Against what MaskCollator of facebookresearch/ijepa 52c1ae95 drew with the released settings."""
    golden = np.load(FIXTURES / f"ijepa_masks_grid{grid[0]}_batch{group_size}.npz")
    masks = official(grid, group_size, context_tokens=context_tokens)
    assert masks.target_tokens == largest
    groups, theirs = 300, int(golden["batches"])
    kept, hits = np.zeros((2, groups, grid[0] * grid[1]))
    context_count, target_count = np.zeros((2, groups))
    for group in range(groups):
        for mask in members(masks, group):
            np.add.at(kept[group], mask.context_indices[mask.context_valid], 1 / group_size)
            np.add.at(hits[group], mask.target_indices[mask.target_valid], 1 / group_size)
        context_count[group], target_count[group] = mask.context_valid.sum(), mask.target_valid[0].sum()

    sizes = np.unique(golden["target_count"])
    for ours, expected in (
        (kept, golden["context_keep_probability"].ravel()),
        (hits, golden["target_hits_per_image"].ravel()),
        (target_count[:, None] == sizes, (golden["target_count"][:, None] == sizes).mean(axis=0)),
    ):
        # Means over independent groups, ours and theirs, of the same deviation; nothing where nothing varies.
        error = ours.std(axis=0, ddof=1) * (1 / groups + 1 / theirs) ** 0.5
        assert (np.abs(ours.mean(axis=0) - expected) <= 5 * error).all()
    assert set(target_count) <= set(sizes)

    # Kolmogorov-Smirnov: exceeded once in 10^6 by two samples of one distribution.
    values = np.unique([*context_count, *golden["context_count"]])
    ours, expected = ((x[:, None] <= values).mean(axis=0) for x in (context_count, golden["context_count"]))
    assert np.abs(ours - expected).max() < 2.69 * (1 / groups + 1 / theirs) ** 0.5


@pytest.mark.parametrize(
    ("grid", "changes", "key"),
    [
        ((8, 8), {"context_tokens": 60}, "target_scale"),  # a target block of 3 x 3 patches
        ((6, 6), {"context_tokens": 36}, "target_scale"),
        ((14, 14), {"min_context": 30}, "target_scale"),
        ((14, 14), {"context_scale": (0.02, 1.0)}, "context_scale"),
        ((1, 40), {"context_tokens": 40}, "target_scale"),  # a target block of 0 rows
        ((14, 14), {"context_tokens": 10}, "context_tokens"),
        ((14, 14), {"context_tokens": 197}, "context_tokens"),
        ((14, 14), {"group_size": 0}, "group_size"),
    ],
)
def test_settings_with_which_the_released_code_never_returns_are_refused(grid, changes, key):
    assert refused(official, grid, **({"group_size": 4} | changes)) == f"masking.{key}"


def test_official_draws_end_with_the_least_that_is_not_refused():
    masks = official((14, 14), 4, min_context=29, target_blocks=20)
    for mask in draws(masks, 200):
        assert mask.context_valid.sum() > 29


@pytest.mark.parametrize("context_tokens", [117, 90])
def test_random_context_and_target_are_complements_but_for_what_k_drops(context_tokens):
    masks = random((14, 14), context_tokens=context_tokens)
    assert masks.target_tokens == 196 - 78
    hidden, often = [], np.zeros(196)
    for mask in draws(masks, 2000):
        context, target = mask.context_indices[mask.context_valid], mask.target_indices[0, mask.target_valid[0]]
        np.add.at(often, context, 1)
        hidden.append(len(target))
        assert len(set(context) | set(target)) == len(context) + len(target) == 196 - mask.context_dropped
        assert mask.context_dropped == max(196 - len(target) - context_tokens, 0)
    # The hidden share is uniform: mean 98.5 (the visible count is rounded down), deviation 0.2 * 196 / sqrt(12) = 11.3.
    assert abs(np.mean(hidden) - 98.5) < 5 * 11.3 / 2000**0.5
    assert min(hidden) == 79 and max(hidden) == 118
    share = often.mean() / 2000  # of images in which a patch is visible, the same for all
    assert np.abs(often / 2000 - share).max() < 5 * (share * (1 - share) / 2000) ** 0.5


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"target_blocks": 4}, "target_blocks"),
        ({"ratio": (0.4, 1.2)}, "ratio"),
        ({"ratio": (0.4, 1.0)}, "min_context"),  # hides all patches
        ({"min_context": 79}, "min_context"),  # 78 patches are left at least
        ({"min_context": 0}, "min_context"),
        ({"context_tokens": 118}, "context_tokens"),  # 117 patches are left at most
        ({"context_tokens": 9}, "context_tokens"),
    ],
)
def test_impossible_random_masks_are_refused_by_name(changes, key):
    assert refused(random, (14, 14), **changes) == f"masking.{key}"


@pytest.mark.parametrize(
    ("changes", "sampler_class", "target_tokens"),
    [
        ({}, BlockMasks, 42),
        ({"masking.kind": "official"}, OfficialMasks, 40),
        ({"masking.kind": "official", "masking.group_size": 7}, OfficialMasks, 40),
        ({"masking.kind": "random", "masking.target_blocks": 1}, RandomMasks, 118),
        ({"masking.kind": "random", "masking.target_blocks": 1, "masking.ratio": (0.1, 0.2)}, RandomMasks, 40),
    ],
)
def test_a_configuration_chooses_the_sampler_and_its_settings(changes, sampler_class, target_tokens):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    validate(config)
    masks = jepa.masks(config)
    assert type(masks) is sampler_class
    assert (masks.context_tokens, masks.target_tokens) == (80, target_tokens)
    for field in dataclasses.fields(masks):
        if field.name != "grid":
            assert getattr(masks, field.name) == config.masking[field.name]


@pytest.mark.parametrize("kind", MASKS)
def test_the_keys_that_have_an_effect_are_a_samplers_fields(kind):
    values = flatten(base.get_config()) | {"masking.kind": kind}
    used = {key.name for key in base.KEYS if key.name.startswith("masking.") and base.KEYS.is_used(key.name, values)}
    fields = {f"masking.{field.name}" for field in dataclasses.fields(MASKS[kind])}
    assert used - {"masking.kind", "masking.length_multiple"} == fields - {"masking.grid"}
