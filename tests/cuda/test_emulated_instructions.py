"""The emulator's warp instructions against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cuda.emulator import emulate
from tests.cuda.emulator.module import ORDERS, aligned
from tests.cuda.texts import text


def filled(values: Tensor) -> Tensor:
    return aligned(values.shape, values.dtype).copy_(values)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return filled(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype))


def mma_text(kind: str, storage: str, k: int, a: str, b: str) -> str:
    """C = A B + C with fragments read element by element, as the PTX manual lays them out."""
    na, nb = a.count(";"), b.count(";")
    numbers = [f"%{i}" for i in range(8 + na + nb)]
    groups = [numbers[:4], numbers[4 : 4 + na], numbers[4 + na : 4 + na + nb], numbers[4 + na + nb :]]
    operands = ", ".join("{" + ", ".join(group) + "}" for group in groups)
    outputs = ", ".join(f'"=f"(c[{i}])' for i in range(4))
    inputs = [f'"r"(a[{i}])' for i in range(na)] + [f'"r"(b[{i}])' for i in range(nb)] + [f'"f"(c[{i}])' for i in range(4)]
    return text(
        f"""
        int lane = (int)threadIdx.x, g = lane / 4, q = lane % 4;
        unsigned a[{na}], b[{nb}];
        {a}
        {b}
        float c[4] = {{C[8 * g + 2 * q], C[8 * g + 2 * q + 1], C[8 * g + 64 + 2 * q], C[8 * g + 64 + 2 * q + 1]}};
        __asm__ __volatile__(
          "mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32"
          "{operands};\\n"
          : {outputs}
          : {", ".join(inputs)});
        C[8 * g + 2 * q] = c[0]; C[8 * g + 2 * q + 1] = c[1];
        C[8 * g + 64 + 2 * q] = c[2]; C[8 * g + 64 + 2 * q + 1] = c[3];
        """,
        f"{storage}* A, {storage}* B, float* C",
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("kind", "storage", "dtype"), [("bf16", "nv_bfloat16", torch.bfloat16), ("f16", "half", torch.float16)])
def test_mma_of_halves_multiplies(kind: str, storage: str, dtype: torch.dtype, order: str) -> None:
    load_a = "".join(f"a[{i}] = *(unsigned*)(A + (g + {8 * (i % 2)}) * 16 + 2 * q + {8 * (i // 2)});\n" for i in range(4))
    load_b = "".join(f"b[{i}] = *(unsigned*)(B + g * 16 + 2 * q + {8 * i});\n" for i in range(2))
    A, B, C = random(16, 16, dtype=dtype), random(8, 16, dtype=dtype), random(16, 8)
    want = C + A.float() @ B.float().T
    emulate(mma_text(kind, storage, 16, load_a, load_b))(A, B, C, order=order)
    torch.testing.assert_close(C, want, rtol=1e-6, atol=1e-5)


def test_mma_of_tf32_drops_the_low_bits() -> None:
    load_a = "".join(f"a[{i}] = __float_as_uint(A[(g + {8 * (i % 2)}) * 8 + q + {4 * (i // 2)}]);\n" for i in range(4))
    load_b = "".join(f"b[{i}] = __float_as_uint(B[g * 8 + q + {4 * i}]);\n" for i in range(2))
    A, B, C = random(16, 8), random(8, 8), random(16, 8)
    cut = lambda x: (x.view(torch.int32) & -(1 << 13)).view(torch.float32)
    want = C + cut(A) @ cut(B).T
    emulate(mma_text("tf32", "float", 8, load_a, load_b))(A, B, C)
    torch.testing.assert_close(C, want, rtol=1e-6, atol=1e-6)


def test_tf32_is_the_nearest_and_of_two_the_larger() -> None:
    bits = [0x3F800000, 0x3F800FFF, 0x3F801000, 0xBF801000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x00001000]
    want = [0x3F800000, 0x3F800000, 0x3F802000, 0xBF802000, 0x7F800000, 0x7F800000, 0xFF800000, 0x00002000]
    signed = lambda words: torch.tensor([w - (w >> 31 << 32) for w in [*words, *[0] * 24]], dtype=torch.int32).view(torch.float32)
    x, y = filled(signed(bits)), aligned((32,), torch.float32)
    x[8] = torch.nan
    body = """
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x[threadIdx.x]));
    y[threadIdx.x] = __uint_as_float(rounded);
    """
    emulate(text(body, "float* x, float* y"))(x, y)
    assert torch.equal(y[:8].view(torch.int32), signed(want)[:8].view(torch.int32)) and y[8].isnan()


LOAD_MATRICES = """
extern __shared__ __align__(64) uchar shared[];
unsigned short* tile = (unsigned short*)shared;
int lane = (int)threadIdx.x;
for (int i = lane; i < 64 * COUNT; i += 32) tile[i] = x[i];
__syncthreads();
unsigned out[COUNT];
unsigned int addr = __cvta_generic_to_shared(tile + 8 * (lane % (8 * COUNT)));
__asm__ __volatile__(
  "ldmatrix.sync.aligned.m8n8.xCOUNT.TRANSshared.b16"
  "{REGISTERS}, [%COUNT];\\n"
  : OUTPUTS
  : "r"(addr));
for (int i = 0; i < COUNT; ++i) *(unsigned*)(y + i * 64 + lane * 2) = out[i];
"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_gives_each_lane_two_neighbours_of_a_row(count: int, transposed: bool) -> None:
    body = LOAD_MATRICES.replace("TRANS", "trans." if transposed else "").replace("COUNT", str(count))
    body = body.replace("REGISTERS", ", ".join(f"%{i}" for i in range(count)))
    body = body.replace("OUTPUTS", ", ".join(f'"=r"(out[{i}])' for i in range(count)))
    x, y = filled(torch.arange(64 * count, dtype=torch.int16)), aligned((count, 8, 8), torch.int16)
    emulate(text(body, "unsigned short* x, unsigned short* y", shared=128 * count))(x, y)
    matrices = x.view(count, 8, 8)
    assert torch.equal(y, matrices.mT if transposed else matrices)


SHUFFLES = {
    "__shfl_sync(0xffffffff, x[l], l / 4 * 4, 32)": lambda l: l // 4 * 4,
    "__shfl_sync(0xffffffff, x[l], 1, 8)": lambda l: l // 8 * 8 + 1,
    "__shfl_up_sync(0xffffffff, x[l], 3, 32)": lambda l: l - 3 if l >= 3 else l,
    "__shfl_down_sync(0xffffffff, x[l], 2, 16)": lambda l: l + 2 if l % 16 < 14 else l,
    "__shfl_xor_sync(0xffffffff, x[l], 5, 32)": lambda l: l ^ 5,
}


@pytest.mark.parametrize(("kind", "dtype"), [("float", torch.float32), ("int", torch.int32), ("half", torch.float16)])
def test_shuffles(kind: str, dtype: torch.dtype) -> None:
    lines = "\n".join(f"y[{32 * i} + l] = {call};" for i, call in enumerate(SHUFFLES))
    x, y = filled(torch.arange(32).to(dtype)), aligned((len(SHUFFLES), 32), dtype)
    emulate(text(f"int l = (int)threadIdx.x;\n{lines}", f"{kind}* x, {kind}* y"))(x, y)
    want = [[source(l) for l in range(32)] for source in SHUFFLES.values()]
    assert y.tolist() == want


COPY = """
extern __shared__ __align__(64) uchar shared[];
float* tile = (float*)shared;
int lane = (int)threadIdx.x;
unsigned to = __cvta_generic_to_shared(tile + 4 * lane);
asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;" :: "r"(to), "l"(x + 4 * lane), "n"(16), "r"(lane < 31 ? 16 : 8));
asm volatile("cp.async.commit_group;" ::: "memory");
WAIT
__syncthreads();
for (int i = 0; i < 4; ++i) y[4 * lane + i] = tile[127 - 4 * lane - i];
"""


@pytest.mark.parametrize("order", ORDERS)
def test_asynchronous_copies_arrive_when_waited_for_and_fill_with_zeros(order: str) -> None:
    x, y = random(128), aligned((128,), torch.float32)
    wait = 'asm volatile("cp.async.wait_group 0;" ::: "memory");'
    emulate(text(COPY.replace("WAIT", wait), "float* x, float* y", shared=512))(x, y, order=order)
    want = x.clone()
    want[126:] = 0
    assert torch.equal(y, want.flip(0))


CONVERSIONS = """
int i = (int)threadIdx.x + 32 * (int)blockIdx.x;
y[i] = (KIND)x[i];
z[i] = (float)y[i] + 0.0f;
"""


@pytest.mark.parametrize(("kind", "dtype"), [("half", torch.float16), ("nv_bfloat16", torch.bfloat16)])
def test_halves_round_as_in_torch(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=generator, dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0.0, -0.0, 65504, 65519.99, 65520, 6e-8, 2.9e-8, 2.98023e-8, 6.1e-5, float("inf"), float("nan"), 1.0])
    x = filled(torch.cat([special, torch.randn(4084 // 2) * 1e-5, bits.view(torch.float32)])[:4096])
    y, z = aligned((4096,), dtype), aligned((4096,), torch.float32)
    emulate(text(CONVERSIONS.replace("KIND", kind), f"float* x, {kind}* y, float* z", blocks=128))(x, y, z)
    assert torch.equal(y.isnan(), x.isnan())
    keep = ~x.isnan()
    assert torch.equal(y[keep].view(torch.int16), x.to(dtype)[keep].view(torch.int16))
    assert torch.equal(z[keep], y.float()[keep])
