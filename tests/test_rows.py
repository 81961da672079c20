"""Rows on disk: what is read is what an array in memory would give, and only what is asked for is read."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from tc_jepa.evaluation import features
from tc_jepa.evaluation.rows import mapped, moments, Rows, write_array, write_rows

ARRAY = np.random.default_rng(0).normal(3, 2, (150, 4, 6)).astype(np.float32)
HELD_OUT = np.arange(150) % 5 == 0


def rows(*cuts: int) -> Rows:
    return Rows(np.split(ARRAY, cuts))


@pytest.mark.parametrize("cuts", [(), (1,), (70, 140)])
@pytest.mark.parametrize("key", [slice(60, 80), slice(None), np.array([149, 0, 70, 69, 0]), np.array([], int)])
def test_rows_are_those_of_the_whole_array(cuts, key):
    np.testing.assert_array_equal(rows(*cuts)[key], ARRAY[key])


@pytest.mark.parametrize("selected", [HELD_OUT, ~HELD_OUT, slice(3, 100), np.array([140, 2])])
def test_a_selection_is_changed_when_it_is_read(selected):
    chosen = rows(70).map(lambda x: x - 1).select(selected).map(lambda x: 2 * x)
    np.testing.assert_array_equal(np.asarray(chosen), 2 * (ARRAY[selected] - 1))
    np.testing.assert_array_equal(np.stack(list(chosen)), np.asarray(chosen))
    assert chosen.shape == ARRAY[selected].shape


def test_moments_are_those_of_all_rows():
    far = Rows([ARRAY[:70] + 1000, ARRAY[70:] + 1000])
    for found, expected in zip(moments(far), (ARRAY.mean((0, 1)) + 1000, ARRAY.std((0, 1))), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_arrays_written_in_chunks_are_read_by_numpy_and_mapped(tmp_path):
    path = tmp_path / "features.npz"
    with zipfile.ZipFile(path, "w") as archive:
        write_array(archive, "name", np.array(["a", "bcd"]))
        write_rows(archive, "patches", 150, iter(np.split(ARRAY, [100])))
    with np.load(path, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["patches"], ARRAY)
        assert found["name"].tolist() == ["a", "bcd"]
    assert isinstance(mapped(path, "patches"), np.memmap)
    np.testing.assert_array_equal(mapped(path, "patches"), ARRAY)
    np.savez_compressed(path, patches=ARRAY)
    with pytest.raises(ValueError, match="compressed"):
        mapped(path, "patches")


def test_patches_of_a_store_stay_on_disk(tmp_path):
    features.save(tmp_path / "shard.npz", {"patches": Rows.of(ARRAY), "pooled": ARRAY.mean(axis=1)})
    found = features._load(tmp_path / "shard.npz")
    assert isinstance(found["patches"], np.memmap) and not isinstance(found["pooled"], np.memmap)
    np.testing.assert_array_equal(found["patches"], ARRAY)


def test_rows_that_are_read_in_turn_do_not_fill_the_memory(tmp_path):
    many = Rows([np.broadcast_to(np.float32(1), (4000, 16, 64))]).map(lambda x: x + 1)  # 16 MB if it were read at once
    tracemalloc.start()
    mean, deviation = moments(many.select(slice(1, None)))
    features.save(tmp_path / "shard.npz", {"patches": many})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (mean == 2).all() and (deviation == 0).all() and peak < 4e6
