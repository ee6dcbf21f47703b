"""The tuner on GPUs, up to the measuring process: spaces, models, proposals, builds and cases."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilegen.build import nvcc, nvrtc
from tilegen.build.library import functions_of
from tilegen.build.scheduled import require_names
from tilegen.build.target import resolve
from tilegen.errors import ScheduleError
from tilegen.mechanisms import Instance, get
from tilegen.plan.plan import plan
from tilegen.tune import packed
from tilegen.tune.case import Case
from tilegen.tune.device import build, cases, needs, operators
from tilegen.tune.device.measure import unlike
from tilegen.tune.device.model import Model
from tilegen.tune.device.operators import Operator, tuned_sizes
from tilegen.tune.device.propose import DeviceProposer
from tilegen.tune.device.space import DecisionSpace
from tilegen.tune.engine import Candidate
from tilegen.tune.evolve import Decisions
from tilegen.tune.gate import complaint
from tilegen.tune.journal import Outcome
from tilegen.tune.planned import Exact

SIZES = {"B": 2, "T": 48, "H": 2}


def instance(op: str = "elementwise_attention", dtype: str = "float32") -> Instance:
    found = get(op)
    static = {"C": 32} if op == "elementwise_attention" else {"D": 32, "E": 32}
    return Instance(found, found.config(**({"order": 2} if "order" in vars(found.config()) else {})), static, dtype)


@pytest.fixture(scope="module")
def operator() -> Operator:
    return Operator(instance(), resolve("sm_90"), {"B": 2, "T": 48})


def space() -> DecisionSpace:
    return DecisionSpace(["channels", "steps", "ahead"], [[32, 1, 2, 4, 8, 16, 64], [8, 1, 2, 4, 16], [1, 0, 2]])


def seconds(point: Decisions) -> float:
    """Mostly a sum over the decisions, with one interaction; the best is (16, 4, 2)."""
    channels, steps, ahead = point
    cost = abs(math.log2(channels) - 4) + abs(math.log2(steps) - 2) + 0.3 * abs(ahead - 2)
    return 1e-4 * math.exp(0.3 * cost + 0.2 * (ahead == 2 and steps == 16))


class TestSpace:
    def test_the_default_is_what_the_rule_chooses(self, operator: Operator) -> None:
        kernel = operator.kernel(*operator.places[0])
        assert kernel is not None
        assert kernel.space.names[0] == "channels"
        assert kernel.space.default == tuple(c[0] for c in kernel.space.categories)

    def test_neighbours_differ_in_one_decision_and_nearest_come_first(self) -> None:
        around = list(space().around((32, 8, 1)))
        assert len(around) == 6 + 4 + 2 == len(set(around))
        assert all(sum(a != b for a, b in zip(p, (32, 8, 1), strict=True)) == 1 for p in around)
        assert set(around[:3]) <= {(16, 8, 1), (64, 8, 1), (32, 4, 1), (32, 16, 1), (32, 8, 2), (32, 8, 0)}

    def test_records_of_other_spaces_are_no_points(self) -> None:
        assert space().indices([16, 4, 0]) == (16, 4, 0)
        assert space().indices([16, 4]) is None
        assert space().indices([48, 4, 0]) is None

    def test_what_a_rule_offers_beside_other_choices_is_added(self) -> None:
        own = space()
        own.extend(own.names, [[32, 128], [8], [1]])
        assert own.categories[0][-1] == 128
        own.extend(["channels", "other", "ahead"], [[256], [8], [1]])
        assert 256 not in own.categories[0]


class TestProposals:
    def search(self, seed: int, count: int) -> list[Decisions]:
        proposer, found = DeviceProposer(space(), seed=seed), []
        while len(found) < count:
            batch = proposer.propose(8)
            proposer.learn([(c, Outcome("ok", seconds(c.decisions))) for c in batch])
            found += [c.decisions for c in batch]
        return found[:count]

    def test_the_default_comes_first_then_its_neighbours(self) -> None:
        found = self.search(0, 13)
        assert found[0] == (32, 8, 1)
        assert set(found[1:]) == set(space().around((32, 8, 1)))

    def test_the_model_finds_the_best_in_a_third_of_the_space(self) -> None:
        best = min(seconds(p) for p in itertools.product(*space().categories))
        for seed in range(5):
            assert min(seconds(p) for p in self.search(seed, 105 // 3)) == best

    def test_nothing_is_proposed_twice_and_everything_once(self) -> None:
        found = self.search(1, 105)
        assert len(set(found)) == 105
        proposer = DeviceProposer(space())
        proposer.learn([(Candidate(p), Outcome("ok", seconds(p))) for p in found])
        assert proposer.propose(8) == []

    def test_failures_are_kept_away_from(self) -> None:
        """Candidates of 16 steps crash: what the model proposes has few of them."""
        proposer, proposed = DeviceProposer(space()), []
        for _ in range(6):
            batch = proposer.propose(8)
            bad = Outcome("crash")
            proposer.learn([(c, bad if c.decisions[1] == 16 else Outcome("ok", seconds(c.decisions))) for c in batch])
            proposed += [c.decisions for c in batch]
        assert sum(p[1] == 16 for p in proposed[13:]) <= 0.2 * len(proposed[13:])

    def test_the_model_ranks_what_it_has_not_seen(self) -> None:
        points = list(itertools.product(*space().categories))
        random.Random(0).shuffle(points)
        model = Model(space().categories, {p: seconds(p) for p in points[:40]})
        expected = model.seconds(points[40:])
        actual = np.log([seconds(p) for p in points[40:]])
        assert np.corrcoef(expected, actual)[0, 1] > 0.9


def compiler() -> bool:
    return nvcc.find() is not None or (nvrtc.find() is not None and nvrtc.headers() is not None)


@pytest.fixture
def needs_compiler() -> None:
    if not compiler():
        pytest.skip("neither nvcc nor NVRTC is installed")


class TestBuilds:
    def job(self, operator: Operator, decisions: tuple[int, ...], folder: Path) -> dict[str, Any]:
        sketch = operator.sketch()
        return build.build(**sketch.job(*sketch.places[0]), decisions=list(decisions), target=sketch.text, folder=str(folder))

    def test_decisions_become_machine_code_and_a_table_of_launches(
        self, operator: Operator, tmp_path: Path, needs_compiler: None
    ) -> None:
        made = self.job(operator, (), tmp_path)
        assert made["kind"] == "ok"
        assert Path(made["library"]).read_bytes()[:4] == b"\x7fELF"
        (launch,) = json.loads(Path(made["library"]).with_suffix(".json").read_text())["launches"]
        assert {a["tensor"] for a in launch["arguments"] if "tensor" in a} == {"q", "k", "v", "saved_marks", "y"}
        assert made["compiled"][0]["registers"] > 0

    def test_equal_code_is_compiled_once(self, operator: Operator, tmp_path: Path, needs_compiler: None) -> None:
        first = self.job(operator, (), tmp_path)
        stamp = Path(first["library"]).stat().st_mtime_ns
        again = self.job(operator, tuple(first["decisions"]), tmp_path)
        assert again == first
        assert Path(again["library"]).stat().st_mtime_ns == stamp
        assert len(list(tmp_path.glob("*.cubin"))) == 1

    def test_what_the_rule_does_not_offer_costs_no_compilation(self, operator: Operator, tmp_path: Path) -> None:
        made = self.job(operator, (48,), tmp_path)
        assert made["kind"] == "schedule"
        assert "channels is 48" in made["message"]
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("launch", "message"),
        [
            ({"block": [1024, 2, 1], "shared": 0}, "2048 threads"),
            ({"block": [32, 1, 1], "shared": 300_000}, "300000 bytes of shared memory"),
            ({"block": [1024, 1, 1], "shared": "16*T"}, None),
        ],
    )
    def test_launches_that_the_device_would_refuse_are_known(self, launch: dict[str, Any], message: str | None) -> None:
        found = needs.beyond(launch, resolve("sm_90").machine)  # type: ignore[arg-type]
        assert found is None if message is None else message in (found or "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", ["elementwise_attention", "linear_attention"])
def test_cases_have_references_that_the_formula_itself_meets(op: str, dtype: str, tmp_path: Path) -> None:
    made = Operator(instance(op, dtype), resolve("sm_90"), {})
    sizes = made.checks()["ragged"]
    cases.prepare(**made.sketch().owner(), sizes={"ragged": sizes}, seed=0, folder=str(tmp_path))
    case = Case.load(tmp_path / "ragged")
    assert case.sizes == sizes
    result = "y" if op == "elementwise_attention" else "o"
    assert {"q", "k", "v", f"grad_{result}"} <= set(case.inputs)
    assert {result, "grad_q", "grad_k", "grad_v"} <= set(case.references)
    plain = cases._through(Exact(made.owner.plan, False), case.inputs, sizes)
    for output, reference in case.references.items():
        limit = case.limits[output]
        assert complaint(output, plain[output], reference, limit) is None
        assert complaint(output, plain[output] * 1.1, reference, limit)


def test_a_stage_names_what_functions_share_once(operator: Operator, tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    operator.sketch().write_stage({place: f"{place[0]}{place[1]}.cubin" for place in operator.places}, path)
    stage = json.loads(path.read_text())
    assert stage["sizes"] == {"B": 2, "T": 48}
    assert stage["tensors"]["q"] == {"dtype": "float32", "shape": [2, 48, 32], "role": "input"}
    assert stage["tensors"]["grad_y"]["role"] == "grad_output"
    assert [kernel["library"][:-6] for kernel in stage["kernels"]] == [f"{f}{i}" for f, i in operator.places]
    for kernel in stage["kernels"]:
        assert set(kernel["names"].values()) <= set(stage["tensors"])


def test_operators_of_other_modules_are_described_by_processes_that_import_them() -> None:
    import tune_custom

    found = tune_custom.tuned_recurrence.mechanism
    request = operators.Request(Instance(found, found.config(), {"C": 32}, "float32"), {"B": 2, "T": 48})
    assert request.module == "tune_custom"
    target = build.target_text(resolve("sm_90"))
    made = operators.describe(request.instance.key, request.module, dict(request.given), False, target)
    sketch = operators.Sketch(json.loads(json.dumps(made)), resolve("sm_90"))
    assert sketch.sizes == {"B": 2, "T": 48}
    assert {"forward", "backward"} == {function for function, _ in sketch.kernels}
    refused = operators.describe(request.instance.key, "__main__", {}, False, target)
    assert "move it to a module of its own" in refused["error"]


def test_sizes_fill_a_gpu_and_a_step_has_one_position() -> None:
    usual = get("elementwise_attention").representative
    assert tuned_sizes(instance(), {}, False) == {"B": 2 * usual["B"], "T": 4 * usual["T"]}
    assert tuned_sizes(instance(), {"T": 100}, False)["T"] == 100
    assert tuned_sizes(instance(), {}, True)["T"] == 1


def test_rows_of_all_sequences_follow_from_their_number_and_length() -> None:
    found = get("compact")
    compact = Instance(found, found.config(), {"C": 32}, "float32")
    sizes = tuned_sizes(compact, {}, False)
    assert sizes["N"] == sizes["R"] == sizes["B"] * sizes["T"]
    assert tuned_sizes(compact, {"R": 100}, False)["R"] == 100
    assert all(s["N"] == s["B"] * s["T"] for s in Operator(compact, resolve("sm_90"), {}).checks().values())


class TestPackedSequences:
    def instance(self) -> Instance:
        found = get("linear_attention")
        return Instance(found, found.config(packed=True, chunk=16), {"D": 16, "E": 16}, "float32")

    @pytest.mark.parametrize("rows", [37, 131, 320])
    def test_tables_are_those_that_calls_make(self, rows: int) -> None:
        import torch

        from tilegen.torch.packing import tables

        sizes = packed.sizes_of(self.instance(), {"T": rows, "S": 3, "H": 2}, whole=False)
        bounds = packed.bounds(sizes)
        made = tables((1, 16), torch.tensor(bounds, dtype=torch.int32), "q", torch.empty(1, rows, 1))
        for name, expected in made.items():
            assert np.array_equal(packed.table(name, sizes), expected.numpy())  # type: ignore[arg-type]
        assert made["owner_16"].numel() == sizes["N16"]
        assert packed.table("saved_starts_16", sizes) is None

    def test_all_tiles_exist_where_kernels_are_measured(self) -> None:
        made = Operator(self.instance(), resolve("sm_90"), {"T": 1000, "S": 4})
        lengths = np.diff(packed.bounds(made.sizes))
        assert made.sizes["T"] == sum(lengths) == 996
        assert sum(-(-lengths // 16)) == made.sizes["N16"]
        assert len(set(lengths)) > 1
        assert any(0 in np.diff(packed.bounds(sizes)) for sizes in made.checks().values())

    def test_cases_have_references(self, tmp_path: Path) -> None:
        found = get("elementwise_attention")
        instance = Instance(found, found.config(packed=True, order=2), {"C": 16}, "float32")
        made = Operator(instance, resolve("sm_90"), {})
        sizes = made.checks()["ragged"]
        cases.prepare(**made.sketch().owner(), sizes={"ragged": sizes}, seed=0, folder=str(tmp_path))
        case = Case.load(tmp_path / "ragged")
        assert np.array_equal(case.inputs["ends_1"], packed.bounds(sizes)[1:])
        assert {"y", "grad_q", "grad_k", "grad_v"} <= set(case.references)
        assert all(np.isfinite(reference).all() for reference in case.references.values())


class TestNeeds:
    def lowered(self, decisions: Sequence[int]) -> list[needs.Need]:
        target = resolve("sm_90")
        found = get("local_attention")
        owner = Instance(found, found.config(window=128), {"D": 64, "E": 64}, "bfloat16")
        part = build._functions(owner.key, True, target.machine)["backward"]
        return needs.needs_of(build.written(part, 0, owner.dtype, build.Asked(decisions), target))

    def test_a_tile_for_one_warp_has_no_registers(self) -> None:
        """nvcc 13.0 for sm_90: four warps take 240 registers; one warp has spills of 38 kB a thread."""
        gpu = resolve("sm_90").machine
        (usual,), (alone,) = self.lowered(()), self.lowered((1, 1))
        assert (usual.threads, alone.threads) == (128, 32)
        assert 0.5 * 240 < usual.words < 240
        assert alone.words > 4 * usual.words
        assert needs.hopeless(usual, {"shared": 70_000}, gpu) is None
        assert "a thread of 32 in a block has 255 registers" in (needs.hopeless(alone, {"shared": 70_000}, gpu) or "")

    @pytest.mark.parametrize(("threads", "words", "shared"), [(1024, 100, 0), (32, 50, 120_000)])
    def test_blocks_share_registers_and_shared_memory(self, threads: int, words: int, shared: int) -> None:
        gpu = resolve("sm_90").machine
        need = needs.Need(threads, {"a": words}, {"a": [1, 2]})
        assert needs.hopeless(need, {"shared": shared}, gpu) is not None
        assert needs.hopeless(needs.Need(128, {"a": words}, {"a": [1, 2]}), {"shared": 70_000}, gpu) is None

    def test_what_is_pruned_is_not_compiled_and_a_default_never_is(self, tmp_path: Path) -> None:
        found = get("local_attention")
        owner = Instance(found, found.config(window=128), {"D": 64, "E": 64}, "bfloat16")
        target = build.target_text(resolve("sm_90"))
        made = build.build(owner.key, "", True, "backward", 0, [1, 1], target, str(tmp_path), prune=True)
        assert made["kind"] == "pruned"
        assert not list(tmp_path.iterdir())


def test_steps_are_planned_as_they_are_built() -> None:
    """A window too long for a tile is cut into pieces on a GPU: a record of another plan would not be found."""
    target, found = resolve("sm_90"), get("local_attention")
    owner = Instance(found, found.config(window=1024), {"D": 32, "E": 32}, "bfloat16")
    (built,) = [function for _, function in functions_of(owner, ("step",), target.machine).values()]
    step = owner.step_instance()
    assert step is not None
    tuned = build._functions(step.key, False, target.machine)["forward"]
    assert [(k.name, k.pattern) for k in tuned.kernels] == [(k.name, k.pattern) for k in built.kernels]
    assert len(tuned.kernels) != len(plan(step, backward=False).functions["forward"].kernels)


def test_a_kernel_without_room_in_shared_memory_is_not_searched() -> None:
    found, target = get("linear_attention"), resolve("sm_75")
    large = Instance(found, found.config(), {"D": 128, "E": 128}, "float32")
    made = Operator(large, target, {})
    assert all(kernel.room is not None for kernel in made.functions["forward"].kernels)
    assert made.kernel("forward", 0) is None
    assert any(name.endswith("_room") for name in made.describe()["tensors"]["tuned"])


def test_results_at_the_tuned_sizes_are_compared_with_the_defaults() -> None:
    expected = np.random.default_rng(0).standard_normal(1000)
    assert unlike(expected + 1e-3, expected, "bfloat16", "bfloat16") is None
    assert "differs" in (unlike(expected + 0.3, expected, "bfloat16", "bfloat16") or "")
    assert "differs" in (unlike(expected + 1e-3, expected, "float32", "float32") or "")
    assert unlike(expected + 1e-3, expected, "float32", "bfloat16") is None  # kept between kernels on half precision
    hole = expected.copy()
    hole[7] = np.nan
    assert "NaN" in (unlike(hole, expected, "bfloat16", "bfloat16") or "")
    assert unlike(expected, hole, "bfloat16", "bfloat16") is None


def test_a_record_with_other_decisions_than_the_rule_asks_for_is_refused() -> None:
    from test_records import record

    known = record(trace=[["warps", 8], ["parts", 2]], decisions=[8, 2])
    require_names(known, ["warps", "parts"])
    with pytest.raises(ScheduleError, match="it decides warps, parts, the rule asks for parts, warps"):
        require_names(known, ["parts", "warps"])


def test_nvcc_makes_the_same_kind_of_code_as_nvrtc(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    code, resources = nvcc.cubin('extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }', "sm_90")
    assert code[:4] == b"\x7fELF"
    assert [r.kernel for r in resources] == ["twice"]
