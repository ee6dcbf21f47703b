"""Inline PTX as calls of the emulator: one statement of C++ for each instruction.

Unknown instructions are errors, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Operands = Sequence[str]


class UnknownInstruction(Exception):
    """The text holds PTX that the emulator does not know; add it to `INSTRUCTIONS`."""


def replace(source: str) -> str:
    """`source` with every asm statement as C++, line by line where it was."""
    out, at = [], 0
    for match in re.finditer(r"\b(?:__asm__|asm)\s*(?:__volatile__|volatile)?\s*\(", source):
        if match.start() < at:
            continue
        end = closing(source, match.end() - 1)
        text = source[match.end() : end]
        out += [source[at : match.start()], translate(text), "\n" * text.count("\n")]
        at = end + 1
        if source[at : at + 1] == ";":
            at += 1
    return "".join([*out, source[at:]])


def translate(statement: str) -> str:
    """The C++ for what is between the parentheses of one asm statement."""
    template, *sections = split(statement, ":")
    lines = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', template)).replace("\\n", "\n").replace("\\t", " ").strip()
    constrained = [operand for section in sections[:2] for operand in split(section, ",") if operand.strip()]
    values = [operand[operand.index("(") + 1 : operand.rindex(")")] for operand in constrained]
    if lines.startswith("{"):
        lines = lines[1 : lines.rindex("}")]
    body = " ".join(instruction(line.strip(), values) for line in lines.split(";") if line.strip())
    return f"{{ {body} }}"


def instruction(text: str, values: Operands) -> str:
    """The C++ for one PTX instruction whose operand ``%i`` is ``values[i]``."""
    predicate, opcode, rest = re.fullmatch(r"(@!?\w+\s+)?([\w.:]+)\s*(.*)", text, re.DOTALL).groups()
    operands = [operand.strip() for operand in split(rest, ",")] if rest.strip() else []
    call = emit(opcode, operands, values)
    if predicate is None:
        return call
    condition = predicate.strip()[1:]
    return f"if ({condition}) {{ {call} }}"


def emit(opcode: str, operands: Operands, values: Operands) -> str:
    for pattern, make in INSTRUCTIONS:
        if match := re.fullmatch(pattern, opcode):
            return make(match, [substituted(operand, values) for operand in operands])
    raise UnknownInstruction(f"the emulator does not know the PTX instruction {opcode!r}; add it to {__name__}.INSTRUCTIONS")


def substituted(operand: str, values: Operands) -> str:
    """One operand as C++: a value, ``a, b`` for a list in braces, an address without its brackets."""
    inner = operand[1:-1] if operand[:1] in ("[", "{") else operand
    return re.sub(r"%(\d+)", lambda match: f"({values[int(match[1])]})", inner)


def listed(operand: str) -> int:
    """How many registers a substituted list has."""
    return len(split(operand, ","))


def _ldmatrix(match: re.Match[str], operands: Operands) -> str:
    out, address = operands
    transposed = "true" if match["trans"] else "false"
    return f"::emu::ldmatrix<{match['n']}, {transposed}>(__LINE__, static_cast<uint32_t>({address}), {out});"


_ELEMENTS = {"bf16": "Bf16Element", "f16": "Fp16Element", "tf32": "Tf32Element"}


def _mma(match: re.Match[str], operands: Operands) -> str:
    d, a, b, c = operands
    element = _ELEMENTS[match["type"]]
    fragments = f"::emu::fragment({a}), ::emu::fragment({b})"
    return f"::emu::mma<::emu::{element}, {match['k']}>(__LINE__, {d}, {fragments}, {c});"


def _cp_async(match: re.Match[str], operands: Operands) -> str:
    shared, source, size, *taken = operands
    return f"::emu::copy_async(static_cast<uint32_t>({shared}), reinterpret_cast<const void*>({source}), {size}, {[*taken, size][0]});"


def _compare(match: re.Match[str], operands: Operands) -> str:
    predicate, a, b = operands
    return f"{predicate} = ({a}) {'==' if match['test'] == 'eq' else '!='} ({b});"


def _store(match: re.Match[str], operands: Operands) -> str:
    address, values = operands
    count = listed(values)
    return (
        f"{{ const uint32_t stored[] = {{{values}}}; memcpy(::emu::shared_write(static_cast<uint32_t>({address}), "
        f'{4 * count}, ::emu::lane(), "st.shared"), stored, {4 * count}); }}'
    )


def _function(name: str) -> Callable[[re.Match[str], Operands], str]:
    return lambda match, operands: f"{operands[0]} = {name}({operands[1]});"


_SHARED = r"shared(?:::cta)?"

INSTRUCTIONS: list[tuple[str, Callable[[re.Match[str], Operands], str]]] = [
    (rf"ldmatrix\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?\.{_SHARED}\.b16", _ldmatrix),
    (r"mma\.sync\.aligned\.m16n8k(?P<k>8|16)\.row\.col\.f32\.(?P<type>bf16|f16)\.(?P=type)\.f32", _mma),
    (r"mma\.sync\.aligned\.m16n8k(?P<k>4|8)\.row\.col\.f32\.(?P<type>tf32)\.(?P=type)\.f32", _mma),
    (rf"cp\.async\.c[ag]\.{_SHARED}\.global(?:\.L2::\d+B)?", _cp_async),
    (r"cp\.async\.commit_group", lambda match, operands: "::emu::commit_async();"),
    (r"cp\.async\.wait_group", lambda match, operands: f"::emu::wait_async({operands[0]});"),
    (r"cp\.async\.wait_all", lambda match, operands: "::emu::commit_async(); ::emu::wait_async(0);"),
    (r"\.reg", lambda match, operands: f"bool {operands[0].split()[-1]} = false;"),
    (r"setp\.(?P<test>eq|ne)\.[ubs]32", _compare),
    (rf"st\.{_SHARED}(?:\.v[24])?\.[ub]32", _store),
    (r"ex2\.approx(?:\.ftz)?\.f32", _function("exp2f")),
    (r"lg2\.approx(?:\.ftz)?\.f32", _function("log2f")),
    (r"rcp\.approx(?:\.ftz)?\.f32", _function("__frcp_rn")),
    (r"rsqrt\.approx(?:\.ftz)?\.f32", _function("rsqrtf")),
    (r"sqrt\.approx(?:\.ftz)?\.f32", _function("sqrtf")),
    (r"tanh\.approx\.f32", _function("tanhf")),
    (r"cvt\.rna\.tf32\.f32", _function("::emu::tf32")),
]
"""Patterns of opcodes, each with what writes its C++ from the match and the substituted operands."""


def split(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators outside of brackets and string literals."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, c in enumerate(text):
        if c == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
    depth, quoted = 0, False
    for i in range(opening, len(text)):
        c = text[i]
        if c == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (c == "(") - (c == ")")
            if depth == 0:
                return i
    raise ValueError(f"no closing parenthesis after {text[opening : opening + 80]!r}")
