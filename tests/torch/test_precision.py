"""Products in TF32: torch's settings are asked at every call, and each choice has a library and a key of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.torch import double
from tilegen import mechanisms
from tilegen.build import cached, gpus
from tilegen.mechanisms import Instance
from tilegen.torch import loaded, precision
from tilegen.torch.operator import Operator

H100 = gpus.Card("nvidia-h100", "sm_90", 132, 232448, 233472)
T4 = gpus.Card("nvidia-t4", "sm_75", 40, 65536, 65536)
MATMUL = torch.backends.cuda.matmul


def instance(dtype: str = "float32") -> Instance:
    return Instance(double.MECHANISM, double.Config(), {"C": 8}, dtype)


@pytest.fixture(autouse=True)
def setting() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which libraries were loaded for CUDA devices: whether their products are in TF32."""
    found: list[bool] = []

    def bundle(instance: Instance, gpu: int | None = None, wide: bool = False, tf32: bool = False) -> SimpleNamespace:
        found.append(tf32)
        return double.bundle(instance, gpu, wide, tf32)

    monkeypatch.setitem(mechanisms._REGISTRY, double.MECHANISM.name, double.MECHANISM)
    monkeypatch.setattr(loaded, "load_bundle", bundle)
    monkeypatch.setattr(loaded, "_loaded", {})
    monkeypatch.setattr(gpus, "of_device", lambda index=0: H100)
    return found


SETTINGS: list[tuple[Callable[[], Any], bool]] = [
    (lambda: None, False),
    (lambda: torch.set_float32_matmul_precision("high"), True),
    (lambda: torch.set_float32_matmul_precision("medium"), True),
    (lambda: setattr(MATMUL, "allow_tf32", True), True),
    (lambda: (setattr(MATMUL, "allow_tf32", True), setattr(MATMUL, "allow_tf32", False)), False),
    (lambda: setattr(MATMUL, "fp32_precision", "tf32"), True),
    (lambda: setattr(MATMUL, "fp32_precision", "ieee"), False),
]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_every_setting_of_torch_counts(number: int) -> None:
    change, allowed = SETTINGS[number]
    change()
    assert precision.tf32_allowed() is allowed


def test_a_call_takes_the_library_of_its_setting(asked: list[bool]) -> None:
    operator = Operator.__new__(Operator)
    operator.mechanism, operator._signatures, operator._loaded = double.MECHANISM, {}, {}
    text = operator.signature(double.Config()).text
    with FakeTensorMode():
        on_gpu = [torch.empty(2, 5, 8, device="cuda") for _ in range(2)]
        narrow = [x.bfloat16() for x in on_gpu]
        found = []
        for allowed in (False, True, False, True):
            MATMUL.allow_tf32 = allowed
            found.append(operator.loaded(text, on_gpu))
            assert operator.loaded(text, narrow).tf32 is False
    assert [library.tf32 for library in found] == [False, True, False, True]
    assert found[0] is found[2] and found[1] is found[3]
    assert asked == [False, False, True]


def test_a_backward_asks_again(asked: list[bool]) -> None:
    device = torch.device("cuda:0")
    usual = loaded.loaded(instance(), device)
    assert loaded.loaded_by_key(usual.key, device) is usual
    MATMUL.allow_tf32 = True
    rounded = loaded.loaded_by_key(usual.key, device)
    assert rounded.tf32 and rounded.key == usual.key and asked == [False, True]
    narrow = loaded.loaded(instance("bfloat16"), device, tf32=True)
    assert loaded.loaded_by_key(narrow.key, device) is narrow and not narrow.tf32
    assert [("tf32" in place) for place in loaded.provenance(double.MECHANISM.name)] == [False, True, False]


def test_older_gpus_and_cpus_have_none(asked: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "of_device", lambda index=0: T4)
    MATMUL.allow_tf32 = True
    for device in (torch.device("cuda:0"), torch.device("cpu")):
        made = loaded.loaded(instance(), device, tf32=True)
        assert not made.tf32 and loaded.loaded_by_key(made.key, device) is made
    assert asked == [False, False]


def test_the_key_on_disk_changes_with_the_choice_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys: list[str] = []
    monkeypatch.setattr(gpus, "of_device", lambda index=0: H100)
    monkeypatch.setattr(cached, "_loaded", {})
    monkeypatch.setattr(cached.cache, "get_or_build", lambda key, build: keys.append(key) or tmp_path)
    monkeypatch.setattr(cached, "load", lambda path: path)
    for tf32 in (False, True, False):
        cached.load_or_compile(instance(), 0, tf32=tf32)
    usual, rounded = keys
    assert '"more":{}' in usual and usual.replace('"more":{}', '"more":{"tf32":true}') == rounded
