"""Tile kernels of GPUs: layouts of registers, placement in shared memory, every decision of the rule, no names."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx

from tests.cuda.emulator import EmulatedInstance, EmulatedModule
from tests.cuda.emulator.module import aligned
from tests.plan.test_values import renamed
from tilegen import mechanisms
from tilegen.bench.check import verdict
from tilegen.build import cuda
from tilegen.build.target import resolve
from tilegen.mechanisms import Instance
from tilegen.plan.gpu.func import WARP, device_func
from tilegen.plan.gpu.layout import Layout, layout
from tilegen.plan.gpu.math import math_of
from tilegen.plan.gpu.shared import Shared, place
from tilegen.plan.plan import PlanArg, _function, plan
from tilegen.schedules.cuda.tile import Tile
from tilegen.schedules.rule import Fixed, Gpu

SIZES = {"B": 1, "T": 75, "H": 2}
NAMES = re.compile(r"\b[A-Za-z_]\w*\b")


def elements(found: Layout) -> list[tuple[int, int]]:
    """The places of all registers of all threads."""
    thread = tirx.Var("thread", "int32")
    at = [tirx.Var(name, "int32") for name in "abcd"]
    place_of = found.place(thread, (at[0], at[1], at[2], at[3]))
    makers = [callable_of([thread, *at], value) for value in place_of]
    a, b, c, d = found.dims
    return [
        tuple(make(t, i, j, k, m) for make in makers)
        for t in range(found.warps * WARP)
        for i in range(a)
        for j in range(b)
        for k in range(c)
        for m in range(d)
    ]


def callable_of(variables, value):
    """`value` as a Python function of its variables (quotients and remainders are of numbers that are not negative)."""
    text = str(value).replace("T.truncdiv", "div").replace("T.truncmod", "mod").replace("T.Div", "div")
    scope = {"div": lambda p, q: p // q, "mod": lambda p, q: p % q}
    return eval(f"lambda {', '.join(v.name for v in variables)}: {text.replace('/', '//')}", scope)


@pytest.mark.parametrize(
    "found",
    [
        layout(64, 64, 4, True),
        layout(16, 48, 4, True),
        layout(64, 32, 8, True),
        layout(9, 70, 2, True),
        layout(16, 24, 4, False),
        layout(70, 9, 8, False),
    ],
    ids=lambda found: f"{found.rows}x{found.columns}-{found.down}x{found.across}-{'tensor' if found.tensor else 'threads'}",
)
def test_every_element_has_one_register(found):
    """The registers of all threads are the padded tile, each element once."""
    rows, columns = found.extents
    assert rows >= found.rows and columns >= found.columns
    assert sorted(elements(found)) == [(r, c) for r in range(rows) for c in range(columns)]


intervals = st.tuples(
    st.integers(1, 6), st.integers(1, 9), st.sampled_from(["float32", "bfloat16"]), st.integers(0, 9), st.integers(0, 5)
)


@given(st.lists(intervals, min_size=1, max_size=12))
def test_buffers_that_are_live_together_share_no_byte(drawn):
    buffers = [
        Shared(f"b{k}", (8 * rows, 8 * columns), dtype, first, first + length)
        for k, (rows, columns, dtype, first, length) in enumerate(drawn)
    ]
    total = place(buffers)
    for k, one in enumerate(buffers):
        assert one.offset % 128 == 0
        assert one.offset + one.nbytes <= total
        for other in buffers[:k]:
            if one.first <= other.last and other.first <= one.last:
                assert not one.overlaps(other)


def linear(**options) -> Instance:
    mechanism = mechanisms.get("linear_attention")
    return Instance(mechanism, mechanism.config(chunk=32, **options), {"D": 32, "E": 64}, "bfloat16")


def text_of(function, decisions) -> str:
    params = [(arg.name, arg.tensor) for arg in function.args]
    kernels = [(kernel, decisions) for kernel in function.kernels]
    return cuda.generate({"tilegen": device_func(params, kernels, Gpu(), math_of("bfloat16"), "tilegen")}, resolve("sm_90"))


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("warps", [1, 2, 4, 8])
def test_every_decision_gives_the_same_attention(warps, parts, prefetch):
    instance = linear()
    function = plan(instance).functions["forward"]
    run = EmulatedModule(text_of(function, {"warps": warps, "parts": parts, "prefetch": prefetch}))
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for width in (32, 32, 64):
        x = aligned((SIZES["B"], SIZES["T"], SIZES["H"], width), torch.bfloat16)
        inputs.append(x.copy_(torch.randn(x.shape, generator=generator)))
    o = aligned((SIZES["B"], SIZES["T"], SIZES["H"], 64), torch.bfloat16)
    reference = instance.mechanism.reference
    (exact,) = reference(instance.config, *[x.double() for x in inputs])
    (plain,) = reference(instance.config, *[x.float() for x in inputs])
    for order in ("forward", "reverse"):
        run["tilegen"](*inputs, o.fill_(float("nan")), order=order)
        found = verdict("o", o, plain, exact)
        assert found.passed, found


def test_the_rule_offers_only_what_fits():
    """Candidates of the rule divide the results, and the default takes no more shared memory than a block has."""
    for gpu in (Gpu(), Gpu(80, 108, 166912, 167936)):
        for name, function in plan(linear()).functions.items():
            for kernel in function.kernels:
                made = Tile().decide(kernel, gpu, Fixed())
                assert kernel.shared_axis() % (16 * made["parts"]) == 0 or made["parts"] == 1, name
                assert kernel.shared_bytes(gpu, made["warps"], made["parts"]) <= gpu.shared_bytes


def test_barriers_are_where_shared_memory_changes_hands():
    """Tiles and the snapshot of the state are there; all is read, unless the next step has another copy of shared memory."""
    function = plan(linear()).functions["forward"]
    assert text_of(function, {"warps": 2, "parts": 1, "prefetch": 0}).count("__syncthreads();") == 2
    assert text_of(function, {"warps": 2, "parts": 1, "prefetch": 1}).count("__syncthreads();") == 1


def test_an_operand_of_two_contractions_is_loaded_once():
    """Queries meet keys and the state, values meet scores and keys: of eight operands five are loaded, scores stay in registers."""
    function = plan(linear()).functions["forward"]
    text = text_of(function, {"warps": 2, "parts": 1, "prefetch": 1})
    assert text.count("mma.sync") // 2 == 4
    assert text.count('"ldmatrix.sync') == 5


def without_names(text: str) -> str:
    """The text with its identifiers numbered in the order in which they appear."""
    known: dict[str, str] = {}
    return NAMES.sub(lambda match: known.setdefault(match[0], f"n{len(known)}"), text)


def test_names_of_stages_change_nothing():
    forward = plan(linear()).functions["forward"]
    given = [arg for arg in forward.args if arg.role == "input"]
    results = [arg for arg in forward.args if arg.role not in ("input", "workspace")]
    other = renamed([arg.tensor for arg in results], swap=False)
    twin = _function("forward", given, [PlanArg(a.name, a.role, t) for a, t in zip(results, other, strict=True)])
    decisions = {"warps": 4, "parts": 2, "prefetch": 1}
    assert without_names(text_of(twin, decisions)) == without_names(text_of(forward, decisions))


def test_gpus_without_these_tensor_cores_contract_thread_by_thread():
    mechanism = mechanisms.get("linear_attention")
    instance = Instance(mechanism, mechanism.config(chunk=16), {"D": 16, "E": 16}, "float16")
    functions = EmulatedInstance(instance, ("forward",), "sm_75")
    assert "mma.sync" not in functions.source
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 37, 2, 16, generator=generator).half() for _ in range(3))
    made = functions.run("forward", {"q": q, "k": k, "v": v}, ("forward", "reverse"))
    (exact,) = mechanism.reference(instance.config, q.double(), k.double(), v.double())
    (plain,) = mechanism.reference(instance.config, q.float(), k.float(), v.float())
    found = verdict("o", made["o"], plain, exact)
    assert found.passed, found


@pytest.mark.parametrize("options", [{"decay": "head"}, {"decay": "token", "normalize": True}], ids=["head", "token"])
def test_states_beside_narrow_tensors_are_as_good_as_float32(options):
    """Decayed keys are no bfloat16 numbers: rounded for the tensor cores they would cost the state its precision."""
    mechanism = mechanisms.get("linear_attention")
    instance = Instance(mechanism, mechanism.config(chunk=16, return_state=True, **options), {"D": 32, "E": 48}, "bfloat16")
    functions = EmulatedInstance(instance, ("forward",))
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for spec in mechanism.inputs(instance.config):
        x = torch.randn([{"B": 2, "T": 70, "H": 2, "D": 32, "E": 48}[dim] for dim in spec.shape], generator=generator)
        x = -x.abs() if spec.name == "decay" else x.abs() if spec.name in "qk" else x
        inputs[spec.name] = x.to(torch.bfloat16 if spec.dtype == "io" else torch.float32)
    made = functions.run("forward", inputs, ("forward", "reverse"))
    exact = mechanism.reference(instance.config, *[x.double() for x in inputs.values()])
    plain = mechanism.reference(instance.config, *[x.float() for x in inputs.values()])
    for spec, best, single in zip(mechanism.outputs(instance.config), exact, plain, strict=True):
        found = verdict(spec.name, made[spec.name], single, best)
        assert found.passed, found
