"""What a GPU would hide, the emulator reports: who, where, and what."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.emulator import EmulatedError, emulate
from tests.cuda.emulator.module import ORDERS, aligned
from tests.cuda.emulator.ptx import UnknownInstruction
from tests.cuda.texts import text

SHARED = "extern __shared__ __align__(64) uchar shared[];\nfloat* tile = (float*)shared;\nint t = (int)threadIdx.x;\n"


def raises(source: str, message: str, size: int = 128, order: str = "forward") -> None:
    x = aligned((size,), torch.float32).copy_(torch.arange(size).float())
    y = aligned((size,), torch.float32)
    with pytest.raises(EmulatedError, match=message):
        emulate(source)(x, y, order=order, names=("x", "y"))


def of(body: str, **options: int | bool) -> str:
    return text(SHARED + body, "float* x, float* y", **{"threads": 64, "shared": 256, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_is_a_race(order: str) -> None:
    raises(
        of("tile[t] = x[t];\ny[t] = tile[63 - t];"),
        "kernel kernel, block .*: race: thread .* with no barrier between",
        order=order,
    )


def test_a_barrier_orders() -> None:
    x, y = aligned((64,), torch.float32).copy_(torch.arange(64).float()), aligned((64,), torch.float32)
    for order in ORDERS:
        emulate(of("tile[t] = x[t];\n__syncthreads();\ny[t] = tile[63 - t];"))(x, y, order=order)
        assert torch.equal(y, x.flip(0))


def test_a_warp_barrier_orders_a_warp_but_not_a_block() -> None:
    body = "tile[t] = x[t];\n__syncwarp();\ny[t] = tile[t ^ {}];"
    x, y = aligned((64,), torch.float32).copy_(torch.arange(64).float()), aligned((64,), torch.float32)
    emulate(of(body.format(1)))(x, y)
    assert y[:2].tolist() == [1, 0]
    raises(of(body.format(32)), "race")


def test_reuse_of_shared_memory_without_a_barrier_is_a_race() -> None:
    body = "tile[t] = x[t];\n__syncthreads();\nif (t < 32) y[t] = tile[63 - t];\nelse tile[t] = 0.0f;"
    raises(of(body), "race: thread .* writes byte .* read with no barrier")


def test_blocks_that_write_the_same_element_race() -> None:
    raises(of("y[t] = x[t];", blocks=2), "race: thread 0 writes byte 0 of y, which another block writes")


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_that_read_what_others_write_race(order: str) -> None:
    body = "int b = (int)blockIdx.x;\ny[64 * b + t] = 1.0f;\nx[64 * b + t] = y[64 * (1 - b) + t];"
    raises(of(body, blocks=2), "race: .*another block", order=order)


def test_one_order_shows_a_race_that_another_hides() -> None:
    """Of the blocks that read an element, the emulator remembers the last: here the one that writes it, unless it runs first."""
    body = "if (t == 0) {\nfloat first = y[0];\nif ((int)blockIdx.x == 1) y[0] = first + 1.0f;\nx[blockIdx.x] = first;\n}"
    x, y = aligned((64,), torch.float32), aligned((1,), torch.float32).fill_(0)
    emulate(of(body, blocks=2))(x, y, order="forward")
    raises(of(body, blocks=2), "race: .*y, which another block writes", order="reverse")


def test_an_overrun_of_shared_memory_names_the_kernel() -> None:
    raises(of("tile[t + 1] = x[t];"), r"kernel kernel, block \(0, 0, 0\), thread \(63, 0, 0\): overrun: .* writes 4 bytes at 256")


def test_an_overrun_of_a_tensor_names_it() -> None:
    raises(of("y[t] = x[t + 65];"), "reads 4 bytes at byte 512 of x, which has 512")
    raises(of("y[t - 1] = x[t];"), "writes 4 bytes at byte -4 of y")


def test_shared_memory_is_poisoned_for_every_block() -> None:
    x, y = aligned((64,), torch.float32).fill_(1), aligned((128,), torch.float32)
    emulate(of("y[64 * (int)blockIdx.x + t] = tile[t];\ntile[t] = x[t];", blocks=2))(x, y)
    assert y.isnan().all()


def test_static_shared_memory_is_poisoned_and_bounded() -> None:
    body = "__shared__ __align__(16) float room[64];\nroom[t{}] = x[t];\n__syncthreads();\ny[t] = room[63 - t];"
    x, y = aligned((64,), torch.float32).copy_(torch.arange(64).float()), aligned((64,), torch.float32)
    emulate(of(body.format("")))(x, y)
    assert torch.equal(y, x.flip(0))
    raises(of(body.format(" + 1")), "overrun")


def test_a_thread_that_ends_before_a_barrier() -> None:
    body = "if (t < 40) {\n__syncthreads();\n}\ny[t] = x[t];"
    raises(of(body), "kernel kernel.*threads wait for each other: threads 40-63 have ended; threads 0-39 wait at __syncthreads")


def test_threads_at_different_barriers() -> None:
    body = "if (t < 32) {\n__syncthreads();\n} else {\n__syncthreads();\n}\ny[t] = x[t];"
    raises(of(body), "divergent barrier: .*threads 0-31 wait at __syncthreads in line .*; threads 32 wait at __syncthreads")


SHUFFLE = "y[t] = __shfl_sync(__activemask(), x[t], 0, 32);"
MMA = """
float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
__asm__ __volatile__("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, %3};"
  : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(0u));
y[t] = c[0];
"""


def test_a_shuffle_under_a_condition() -> None:
    raises(of(f"if (t % 4 == 0) {{ {SHUFFLE} }}"), "threads wait for each other: .*0, 4, 8.*__shfl_sync")


def test_an_instruction_of_a_warp_that_only_some_lanes_reach() -> None:
    raises(of(f"if (t < 24) {{ {MMA} }}"), "threads wait for each other: .*threads 0-23 wait at mma.sync")


def test_an_instruction_of_a_warp_in_an_incomplete_warp() -> None:
    raises(of(MMA, threads=40), "mma.sync .* of an incomplete warp, which has 8")


def test_lanes_at_different_instructions() -> None:
    body = f"if (t % 32 < 16) {{\n{SHUFFLE}\n}} else {{\n{SHUFFLE}\n}}"
    raises(of(body), "divergent warp")


def test_misaligned_vectors() -> None:
    raises(of("*(float2*)(y + 2 * (t % 32)) = *(float2*)(x + t);"), "misaligned access of 8 bytes")
    raises(of("*(float4*)(tile + 4 * (t % 8) + 2) = *(float4*)(x + 4 * (t % 16));"), "misaligned access of 16 bytes")


def test_misaligned_rows_of_ldmatrix() -> None:
    body = """
    tile[t] = x[t];
    __syncthreads();
    unsigned out;
    __asm__ __volatile__("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(out) : "r"(8u * (t % 8)));
    y[t] = __uint_as_float(out);
    """
    raises(of(body), "misaligned ldmatrix of 16 bytes")


ASYNC = """
unsigned to = __cvta_generic_to_shared(tile + t);
asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" :: "r"(to), "l"(x + t), "n"(4));
asm volatile("cp.async.commit_group;");
"""


def test_an_asynchronous_copy_that_nobody_waits_for() -> None:
    raises(of(f"{ASYNC} __syncthreads();\ny[t] = tile[63 - t];"), "copies to asynchronously and has not waited for")


def test_an_asynchronous_copy_is_not_seen_by_others_before_a_barrier() -> None:
    raises(of(f'{ASYNC} asm volatile("cp.async.wait_group 0;");\ny[t] = tile[63 - t];'), "race")


def test_shared_memory_that_the_launcher_did_not_ask_for() -> None:
    source = of("y[t] = x[t];", shared=60_000, ask=False)
    raises(source, "60000 bytes of dynamic shared memory, allowed are 49152")
    raises(of("y[t] = x[t];", shared=240_000), "240000 bytes of shared memory, a block has 232448 at most")


def test_more_threads_than_the_kernel_is_compiled_for() -> None:
    raises(of("y[t] = x[t];", bound=32), "launched with 64 threads, compiled for 32")


def test_instructions_that_the_emulator_does_not_know() -> None:
    with pytest.raises(UnknownInstruction, match=r"wgmma\.fence"):
        emulate(of('asm volatile("wgmma.fence.sync.aligned;");'))
