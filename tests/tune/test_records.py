"""Tuning logs: what is written comes back, what is damaged is set aside, and the right record is found."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tilegen.errors import RecordError
from tilegen.tune import gains, logs, records
from tilegen.tune.records import Host, Record, RecordKey, TuningLogWarning

HOST = "x86_64-v4"


def key(host: str = HOST, **changes: object) -> RecordKey:
    parts: dict = {"op": "ea", "config": {"order": 6, "causal": True}, "static": {"C": 512}, "dtype": "float32"}
    parts |= {"function": "forward", "kernel": "walk0", "rule": "llvm.walk", "rule_version": 1, "host": host}
    return RecordKey(**(parts | changes))  # type: ignore[arg-type]


def record(seconds: float = 1e-3, k: RecordKey | None = None, **changes: object) -> Record:
    parts: dict = {"key": k or key(), "trace": [[["SampleCategorical", [], [[1, 2], [0.5, 0.5]], ["v0"]]], [[0, 1]]]}
    parts |= {"decisions": [2], "seconds": seconds, "spread": 1e-5, "default_seconds": 2e-3, "sizes": {"B": 4, "T": 2048}}
    parts |= {"device": {"name": HOST}, "versions": {"tvm": "0.27"}, "trials": 64, "seed": 0, "created": "2026-11-23T13:00:00Z"}
    return Record(**(parts | changes))  # type: ignore[arg-type]


def write(folder: Path, *items: Record) -> Path:
    for item in items:
        path = records.log_path(folder, item.key.host, item.key.op)
        logs.append(path, item)
    return path


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    original = record()
    path = write(tmp_path, original)
    assert records.read(path) == [original]
    assert path.read_text().count("\n") == 1


def test_appending_a_record_twice_keeps_one(tmp_path: Path) -> None:
    path = write(tmp_path, record(), record())
    assert len(path.read_text().splitlines()) == 1


def test_keys_ignore_the_order_of_options() -> None:
    assert key(config={"causal": True, "order": 6}) == key() != key(config={"order": 4, "causal": True})


DAMAGES = ["truncated", "flipped digit", "not JSON", "not an object", "other schema", "missing field", "binary"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_line_is_set_aside_with_one_warning(tmp_path: Path, damage: str) -> None:
    good, line = record(), records.encode(record(seconds=2e-3))
    body = json.loads(line)
    del body["sha256"]
    if damage == "other schema":
        body["schema"] = 99
    elif damage == "missing field":
        del body["trace"]
    sealed = records.canonical({**body, "sha256": records.checksum(body)})
    text = {
        "truncated": line[:-20],
        "flipped digit": line.replace('"order":6', '"order":8'),
        "not JSON": "hello",
        "not an object": "[1]",
        "other schema": sealed,
        "missing field": sealed,
        "binary": "\udcff\x00",
    }[damage]
    path = write(tmp_path, good)
    with open(path, "ab") as file:
        file.write(text.encode("utf-8", "surrogateescape") + b"\n\n")
    after = record(seconds=3e-3)
    with pytest.warns(TuningLogWarning, match=r"1 bad line"):
        assert records.read(path) == [good]
    logs.append(path, after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert records.read(path) == [good, after]
    assert path.with_name(path.name + ".quarantine").read_bytes().strip()


def test_a_torn_last_line_spoils_only_itself(tmp_path: Path) -> None:
    path = write(tmp_path, record())
    with open(path, "a") as file:
        file.write(records.encode(record(seconds=2e-3))[:50])
    logs.append(path, record(seconds=3e-3))
    with pytest.warns(TuningLogWarning):
        assert [r.seconds for r in records.read(path)] == [1e-3, 3e-3]


def _append_many(path: Path, start: int) -> None:
    for i in range(20):
        logs.append(path, record(seconds=(start + i) * 1e-6))


def test_writers_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    path = records.log_path(tmp_path, HOST, "ea")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, 100 * n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(records.read(path)) == 80


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    user, shipped = tmp_path / "user", tmp_path / "shipped"
    monkeypatch.setenv("TILEGEN_LOG_DIR", str(user))
    monkeypatch.setattr(records.settings, "shipped_log_dir", lambda: shipped)
    return user, shipped


def test_lookup_prefers_the_users_log_then_the_shipped_then_the_nearest(places: tuple[Path, Path]) -> None:
    user, shipped = places
    assert records.lookup(key()) is None
    found = []
    write(shipped, record(k=key("x86_64-v2")), record(k=key("aarch64"), seconds=1e-6))
    found.append(records.lookup(key()))
    write(shipped, record(k=key("x86_64-v3")))
    found.append(records.lookup(key()))
    write(user, record(k=key("x86_64-v3"), seconds=5e-3))
    found.append(records.lookup(key()))
    write(shipped, record())
    found.append(records.lookup(key()))
    write(user, record(seconds=9e-3))
    found.append(records.lookup(key()))
    assert [(r.source, r.key.host) for r in found if r] == [
        ("nearest", "x86_64-v2"),
        ("nearest", "x86_64-v3"),
        ("nearest", "x86_64-v3"),
        ("shipped", HOST),
        ("user", HOST),
    ]


def test_a_record_of_fewer_cores_counts_only_as_the_users_own(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    user, shipped = places
    monkeypatch.setattr(records, "cores", lambda: 8)
    write(shipped, record(device={"name": HOST, "cores": 2}, seconds=1e-6))
    assert records.lookup(key()) is None
    write(shipped, record(device={"name": HOST, "cores": 8}))
    found = records.lookup(key())
    assert found is not None
    assert found.device["cores"] == 8
    write(user, record(device={"name": HOST, "cores": 2}))
    assert getattr(records.lookup(key()), "source", None) == "user"


@pytest.mark.parametrize("change", [{"rule_version": 2}, {"dtype": "float64"}, {"static": {"C": 64}}, {"kernel": "walk1"}])
def test_lookup_wants_everything_but_the_device_to_agree(places: tuple[Path, Path], change: dict[str, object]) -> None:
    write(places[0], record())
    assert records.lookup(key()) is not None
    assert records.lookup(key(**change)) is None


def test_lookup_takes_the_fastest_that_was_not_beaten_directly(places: tuple[Path, Path]) -> None:
    old = record(seconds=1e-3)
    write(places[0], old, record(seconds=3e-3), record(seconds=2e-3, supersedes=old.id))
    found = records.lookup(key())
    assert found is not None
    assert found.seconds == 2e-3


def test_device_names_are_compared_by_architecture_and_level() -> None:
    me = Host.parse("x86_64-v4")
    assert me == Host("x86_64", "v4")
    far = [me.distance(Host.parse(name)) for name in ("x86_64-v4", "x86_64-v3", "x86_64-v2", "aarch64")]
    assert far == [0, 1, 2, None]


CARDS = {"nvidia-h100": "sm_90", "nvidia-h200": "sm_90", "nvidia-a100": "sm_80", "sm_90": "sm_90"}


def card(name: str) -> RecordKey:
    return key(name, arch=CARDS[name], rule="cuda.walk")


@pytest.mark.parametrize(
    ("recorded", "asked", "found"),
    [
        (["nvidia-h100"], "sm_90", "nvidia-h100"),
        (["sm_90"], "nvidia-h100", "sm_90"),
        (["nvidia-h200"], "nvidia-h100", "nvidia-h200"),
        (["nvidia-h200", "nvidia-h100"], "nvidia-h100", "nvidia-h100"),
        (["nvidia-a100"], "nvidia-h100", None),
        (["nvidia-a100"], "sm_90", None),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_a_gpu_uses_records_of_its_own_name_then_of_its_architecture(
    places: tuple[Path, Path], recorded: list[str], asked: str, found: str | None
) -> None:
    for place in places:
        write(place, *(record(k=card(name), seconds=1e-3 if name == asked else 1e-6) for name in recorded))
        used = records.lookup(card(asked))
        assert (used and used.key.host) == found
    if used:
        assert used.source == ("user" if found == asked else "nearest")


def test_records_of_cpus_keep_their_checksums(tmp_path: Path) -> None:
    """`supersedes` of older records names checksums of records without an architecture."""
    assert "arch" not in record().body()["key"]
    path = write(tmp_path, record(k=card("nvidia-h100")))
    assert records.read(path)[0].key.arch == "sm_90"


def test_merge_files_each_record_under_its_device_once(tmp_path: Path) -> None:
    a, b, into = tmp_path / "a", tmp_path / "b", tmp_path / "into"
    write(a, record(), record(k=key("x86_64-v3")))
    write(b, record(), record(seconds=5e-4))
    assert logs.merge([a, b], into) == 3
    assert logs.merge([a, b], into) == 0
    assert [v.records for v in logs.verify(into)] == [1, 2]


def test_verify_names_the_bad_line_and_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, record())
    path.write_text(path.read_text() + "oops\n")
    before = path.read_bytes()
    (verdict,) = logs.verify(path)
    assert (verdict.records, [n for n, _ in verdict.bad]) == (1, [2])
    assert path.read_bytes() == before


def test_prune_keeps_the_best_of_each_key(tmp_path: Path) -> None:
    old = record(seconds=1e-3)
    path = write(tmp_path, old, record(seconds=2e-3, supersedes=old.id), record(seconds=5e-3), record(k=key(kernel="walk1")))
    assert logs.prune(path, keep=1) == 2
    assert sorted(r.seconds for r in records.read(path)) == [1e-3, 2e-3]
    assert logs.prune(path, keep=1) == 0


def test_an_option_that_came_later_does_not_make_records_useless(tmp_path: Path) -> None:
    import tilegen.ops  # noqa: F401

    op = {"op": "elementwise_attention"}
    old, new = key(config={"order": 6, "causal": True}, **op), key(config={"order": 6, "causal": True, "packed": False}, **op)
    other = key(config={"order": 6, "causal": True, "packed": True}, **op)
    assert old == new != other
    write(tmp_path, record(k=old))
    assert records.lookup(new, tmp_path) is not None
    assert records.lookup(other, tmp_path) is None


def test_a_table_has_the_best_record_of_each_kernel(tmp_path: Path) -> None:
    write(tmp_path, record(seconds=4e-3), record(seconds=1e-3), record(seconds=2e-3, k=key(kernel="walk1")))
    text = "\n".join(gains.tables(tmp_path))
    rows = [line for line in text.splitlines() if line.startswith("| ") and "gain" not in line]
    assert [("walk0" in row, "| 1 ms |" in row) for row in rows] == [(True, True), (False, False)]
    assert "| walk1 | " not in text and "forward.walk1" in text


WRONG = [lambda p: logs.verify(p / "none"), lambda p: logs.merge([p / "none"], p), lambda p: logs.prune(p, keep=0)]


@pytest.mark.parametrize("call", WRONG)
def test_wrong_arguments_are_named(tmp_path: Path, call: object) -> None:
    with pytest.raises(RecordError, match=r"none|keep"):
        call(tmp_path)  # type: ignore[operator]


def test_a_held_lock_is_an_error_that_names_the_log(tmp_path: Path) -> None:
    path = write(tmp_path, record())
    with logs.locked(path), pytest.raises(RecordError, match=r"ea\.jsonl is being written"), logs.locked(path, wait=0.1):
        pass


def test_looking_a_record_up_imports_no_compiler() -> None:
    code = "import sys, tilegen.tune.records as r; assert not {'tvm', 'tvm_ffi', 'torch'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ids_name_the_content() -> None:
    assert record().id == record().id != dataclasses.replace(record(), seed=1).id
    assert dataclasses.replace(record(), source="user").id == record().id
