"""Values of dtypes that NumPy lacks."""

import numpy as np
import pytest

from espalier.floats import NOT_IN_NUMPY, widened
from espalier.torch_io import to_tensor


@pytest.mark.parametrize("dtype", NOT_IN_NUMPY)
def test_every_bit_pattern_has_the_value_that_torch_gives_it(dtype):
    storage = np.uint16 if dtype == "bfloat16" else np.uint8
    bits = np.arange(np.iinfo(storage).max + 1).astype(storage)
    got = widened(bits, dtype)
    want = to_tensor(bits, dtype).float().numpy()
    assert got.dtype == np.float32
    assert np.array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    assert got[number].tobytes() == want[number].tobytes()  # -0 too


def test_shapes_stay_and_other_dtypes_are_left_alone():
    assert widened(np.zeros((2, 0, 3), np.uint16), "bfloat16").shape == (2, 0, 3)
    assert widened(np.zeros((), np.uint8), "float8_e4m3fn").shape == ()
    bits = np.arange(3, dtype=np.uint16)
    assert widened(bits, "uint16") is bits
