"""Every operator compiled for two generations of GPUs: nothing spills, nothing is larger than the machine."""

from __future__ import annotations

import pytest

from tilegen import mechanisms
from tilegen.build import cuda, library, nvcc
from tilegen.build.target import resolve
from tilegen.cli.instance import instance, typical

REGISTERS = 255  # of one thread, on every architecture
STATIC_SHARED = 48 * 1024  # bytes that a kernel may have without asking; more is dynamic
# Without the operators that other tests make, and those for CPUs.
FOUND = [mechanisms.get(name) for name in mechanisms.names()]
OPS = [one.name for one in FOUND if str(one.expression).startswith("tilegen.ops.") and not one.host]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("function", ["forward", "backward"])
@pytest.mark.parametrize("op", OPS)
def test_default_kernels_fit_the_machine(op, function, arch):
    target = resolve(arch)
    wanted = instance(op, typical(mechanisms.get(op)), "bfloat16")
    text, table = cuda.kernels(library.scheduled_parts(wanted, (function,), target).parts, target)
    found = nvcc.examine(text, arch)
    launched = table[f"tilegen_{function}"]
    assert sorted(one.kernel for one in found) == sorted(launch["kernel"] for launch in launched)
    for one in found:
        assert one.spill_stores == one.spill_loads == 0, one
        assert one.registers <= REGISTERS and one.shared <= STATIC_SHARED, one
    for launch in launched:
        assert isinstance(launch["shared"], int) and launch["shared"] <= target.machine.shared_bytes
        threads = launch["block"]
        assert all(isinstance(n, int) for n in threads) and threads[0] * threads[1] * threads[2] <= 1024
        registers = next(one.registers for one in found if one.kernel == launch["kernel"])
        assert registers * threads[0] <= target.machine.registers, "a block does not fit a multiprocessor"
