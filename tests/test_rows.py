"""One array and arrays by name are sliced and counted alike."""

import numpy as np
import pytest
import torch

from calibrate.sites import RowsInMemory
from guard.rows import concatenate, each, n_rows

ARRAY = np.arange(6).reshape(3, 2)


@pytest.mark.parametrize("inputs", [ARRAY, {"a": ARRAY, "b": ARRAY[:, 0]}, torch.from_numpy(ARRAY)])
def test_rows_are_counted_whatever_holds_them(inputs):
    assert n_rows(inputs) == 3


def test_a_function_is_applied_to_the_array_or_to_each_by_name():
    assert each(len, ARRAY) == 3
    assert each(len, {"a": ARRAY, "b": ARRAY[:1]}) == {"a": 3, "b": 1}


def test_parts_join_array_by_array():
    assert concatenate([ARRAY[:1], ARRAY[2:]]).tolist() == [[0, 1], [4, 5]]
    joined = concatenate([{"a": ARRAY[k:], "b": ARRAY[k:, 0]} for k in (1, 2)])
    assert {name: array.tolist() for name, array in joined.items()} == {"a": [[2, 3], [4, 5], [4, 5]], "b": [2, 4, 4]}


def test_rows_in_memory_are_cut_from_every_array():
    rows = RowsInMemory(inputs={"a": ARRAY, "b": ARRAY[:, 0]})
    assert len(rows) == 3
    assert {name: array.tolist() for name, array in rows[1:3].items()} == {"a": [[2, 3], [4, 5]], "b": [2, 4]}
    assert RowsInMemory(inputs=ARRAY)[0:1].tolist() == [[0, 1]]
