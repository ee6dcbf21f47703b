"""From options on the command line to an instance of a mechanism."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

import typer

from tilegen import mechanisms
from tilegen.errors import ArgumentError
from tilegen.mechanisms import ACC, Instance, Mechanism

Op = Annotated[str, typer.Argument(metavar="OP", help="Name of the operator, see `tilegen list`.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="An option or a static size, e.g. -s order=2 -s C=128."),
]
Dtype = Annotated[str, typer.Option(help="Dtype of the arguments: float32, float64, bfloat16 or float16.")]

TARGETS = "cpu, a CPU name such as x86-64-v3, cuda, or a GPU such as sm_90; default: this machine's CPU."

Tf32 = Annotated[
    bool, typer.Option("--tf32", help="Products of float32 tensors in TF32, on a GPU from sm_80 on.", show_default=False)
]

TYPICAL = 128
"""An option without a default is a size, such as a window."""

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def instance(op: str, settings: list[str] | None = None, dtype: str = "float32") -> Instance:
    """The instance that ``OP --set NAME=VALUE --dtype D`` means; sizes not given are the representative ones."""
    check_dtype(dtype)
    found = mechanisms.get(op)
    options, static = split(found, settings or [])
    lacking = [name for name in required(found) if name not in options]
    if lacking:
        raise ArgumentError(f"{op} has no default for {', '.join(lacking)}; give it, for instance --set {lacking[0]}={TYPICAL}")
    return Instance(found, found.config(**options), static, dtype)


def required(found: Mechanism) -> list[str]:
    """The options that have no default."""
    lacks = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(found.config) if f.default is lacks and f.default_factory is lacks]


def typical(found: Mechanism, settings: list[str] | None = None) -> list[str]:
    """Those of `settings` that an operator has, and some for what has no default: where all operators are meant at once."""
    names = {f.name for f in dataclasses.fields(found.config)} | set(found.static)
    own = {name: setting for setting in settings or [] if (name := setting.partition("=")[0]) in names}
    return list({**{name: f"{name}={TYPICAL}" for name in required(found)}, **own}.values())


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that operators do not have."""
    if dtype not in ACC:
        raise ArgumentError(f"--dtype is {dtype!r}, must be one of {', '.join(ACC)}")


def split(found: Mechanism, settings: list[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """The options of the config and the static sizes in ``NAME=VALUE`` settings."""
    hints = typing.get_type_hints(found.config)
    kinds = {f.name: hints[f.name] for f in dataclasses.fields(found.config)}
    options: dict[str, Any] = {}
    static = {name: found.representative[name] for name in found.static}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in (*kinds, *static):
            known = ", ".join([*kinds, *static])
            raise ArgumentError(f"--set is {setting!r}, must be NAME=VALUE where {found.name} has the names {known}")
        if name in static:
            static[name] = _value(setting, int, text)
            if static[name] < 1:
                raise ArgumentError(f"--set is {setting!r}, a size must be at least 1")
        else:
            options[name] = _value(setting, kinds[name], text)
    return options, static


def sizes(text: str | None, known: tuple[str, ...], option: str) -> dict[str, int]:
    """The sizes in ``"B=4,T=2048"``."""
    found = {}
    for part in (text or "").split(","):
        name, equals, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or name not in known or not value.isdigit() or int(value) < 1:
            raise ArgumentError(f"{option} has {part!r}, must be NAME=N with N at least 1 and NAME one of {', '.join(known)}")
        found[name] = int(value)
    return found


def _value(setting: str, kind: Any, text: str) -> Any:
    """`text` as a value of the annotated type `kind`."""
    kinds = typing.get_args(kind) or (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    for one in kinds:
        if one is bool and text.lower() in WORDS:
            return WORDS[text.lower()]
        if one in (int, float):
            try:
                return one(text)
            except ValueError:
                continue
        if one is str or one == text:  # one of a Literal's values
            return text
    names = " or ".join(getattr(one, "__name__", str(one)) for one in kinds)
    raise ArgumentError(f"--set is {setting!r}, its value must be {names}")
