"""The tolerance rule of the gates, and the buffers that catch stray writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tilegen.tune.case import ALIGNMENT, GUARD, Argument, Buffer, Case, normal_inputs, traffic
from tilegen.tune.gate import Limit, complaint, dtype_of, epsilon, limit_around, limit_for

REFERENCE = np.array([1.0, -2.0, 4.0])


def test_the_limit_is_twice_the_plain_error_plus_one_unit_of_the_scale() -> None:
    limit = limit_for(np.float32([1.0, -2.0, 4.001]), REFERENCE, "float32")
    assert limit.peak == pytest.approx(2 * (np.float32(4.001) - 4) + 4 * 2.0**-23, rel=1e-6)
    exact = limit_for(np.float32(REFERENCE), REFERENCE, "float32")
    assert exact.peak == 4 * 2.0**-23


def test_a_single_wrong_element_and_many_slightly_wrong_ones_are_found() -> None:
    limit = Limit(peak=0.01, norm=0.02)
    assert complaint("y", np.add(REFERENCE, [0, 0, 0.009]), REFERENCE, limit) is None
    assert "largest error 0.02 at [2]" in str(complaint("y", np.add(REFERENCE, [0, 0, 0.02]), REFERENCE, limit))
    many = np.zeros(100)
    assert "norm of the error 0.09" in str(complaint("y", many + 0.009, many, limit))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_so_in_the_reference(bad: float) -> None:
    limit = Limit(1.0, 1.0)
    broken = np.array([1.0, bad, 4.0])
    assert "1 of 3 elements are NaN or infinite" in str(complaint("y", broken, REFERENCE, limit))
    assert "1 of 3 elements" in str(complaint("y", REFERENCE, broken, limit))
    assert complaint("y", broken, broken, limit) is None
    if np.isinf(bad):
        assert complaint("y", broken, np.array([1.0, -bad, 4.0]), limit) is not None


@pytest.mark.parametrize(("dtype", "units"), [("float32", 16), ("bfloat16", 2)])
def test_without_a_float64_reference_a_few_units_of_the_scale_are_allowed(dtype: str, units: int) -> None:
    plain = REFERENCE.astype(dtype_of(dtype))
    assert limit_around(plain, dtype).peak == units * epsilon(dtype) * 4


def test_integers_must_agree_exactly() -> None:
    whole = np.array([1, 2, 3])
    limit = limit_for(whole, whole.astype(float), "int32")
    assert limit == Limit(0.0, 0.0)
    assert complaint("n", np.array([1, 2, 4]), whole.astype(float), limit) is not None
    assert epsilon("int32") == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int32"])
def test_buffers_are_aligned_poisoned_and_guarded(dtype: str) -> None:
    buffer = Buffer(Argument("y", (3, 5), dtype, True))
    assert buffer.array.ctypes.data % ALIGNMENT == 0
    assert buffer.array.dtype == dtype_of(dtype)
    seen = []
    for round_ in range(2):
        buffer.poison(round_)
        seen.append(buffer.bytes.tobytes())
        if dtype != "int32" and round_ == 0:
            assert np.isnan(buffer.array.astype(np.float64)).all()
    assert seen[0] != seen[1], "an element nobody writes differs between two runs"
    assert buffer.intact()
    for offset in (0, 1, GUARD - 1):
        for zone in (buffer._after, buffer._before[::-1]):
            zone[offset] ^= 1
            assert not buffer.intact()
            zone[offset] ^= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_case_comes_back_from_its_folder(tmp_path: Path, dtype: str) -> None:
    arguments = [Argument("x", (2, 3), dtype, False), Argument("n", (2,), "int32", False), Argument("y", (2,), "float32", True)]
    inputs = normal_inputs(arguments, {}, 7)
    case = Case(arguments, inputs, {"y": np.array([1.0, np.nan])}, {"y": Limit(1e-3, 2e-3)})
    case.save(tmp_path / "case")
    again = Case.load(tmp_path / "case")
    assert again.arguments == arguments
    assert again.limits == case.limits
    for name, array in inputs.items():
        assert again.inputs[name].dtype == array.dtype
        assert again.inputs[name].tobytes() == array.tobytes()
    np.testing.assert_array_equal(again.references["y"], case.references["y"])
    assert [b.array.tobytes() for b in again.buffers()[:2]] == [inputs["x"].tobytes(), inputs["n"].tobytes()]


def test_inputs_depend_on_the_seed_only() -> None:
    arguments = [Argument("x", (64,), "float32", False), Argument("y", (64,), "float32", False)]
    one, same, other = (normal_inputs(arguments, {}, seed) for seed in (1, 1, 2))
    assert one["x"].tobytes() == same["x"].tobytes() != other["x"].tobytes()
    assert one["x"].tobytes() != one["y"].tobytes()


def test_traffic_counts_every_argument_once() -> None:
    assert traffic([Argument("x", (4, 8), "bfloat16", False), Argument("y", (4,), "float32", True)]) == 64 + 16
