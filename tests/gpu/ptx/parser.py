"""PTX text, as nvcc writes it, to a Module."""

from __future__ import annotations

import re

from .scalar_types import bits_of
from .syntax import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Module,
    Negated,
    Operand,
    Parameter,
    Register,
    SourceLine,
    Symbol,
    UnsupportedPtxError,
    Variable,
    Vector,
)

FUNCTION = re.compile(
    r"(?:\.(?:visible|weak|extern)\s+)*\.(entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)"
    r"\s*(?:\((.*?)\))?([^{;]*)([{;])",
    re.S,
)
VARIABLE = re.compile(
    r"\.(global|const|shared)\s+(?:\.attribute\([^)]*\)\s*)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)"
    r"(\[(\d*)\])?\s*(?:=\s*([^;]+))?;"
)
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)(?:\s+\.ptr)?"
    r"(?:\s+\.(?:global|const|shared|local))?(?:\s+\.align\s+\d+)?\s+(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d+)\])?"
)
STATEMENT = re.compile(
    r"\s*(?:(?P<loc>\.loc\s[^\n]*)"
    r"|(?P<label>[\w$]+)\s*:(?!:)"
    r"|(?P<brace>[{}])"
    r"|(?P<declaration>\.(?:reg|shared|local)\b[^;]*);"
    r"|(?P<ignored>\.(?:pragma|branchtargets|callprototype)[^;]*;)"
    r"|(?P<instruction>[^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);)"
)
BLANK = re.compile(r"\s*\Z")


def parse(text: str) -> Module:
    """Raises UnsupportedPtxError or SyntaxError on what it does not know."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    files = {int(n): f for n, f in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)}
    text = re.sub(r"//[^\n]*", "", text)
    text = re.split(r"^\s*\.section", text, maxsplit=1, flags=re.M)[0]
    target = re.search(r"\.target\s+(\w+)", text)
    module = Module({}, {}, files, target.group(1) if target else "")
    position = 0
    for function in FUNCTION.finditer(text):
        if function.start() < position:
            continue
        _declare(module.variables, text[position : function.start()])
        position = function.end()
        kind, name, parameters, attributes, end = function.groups()
        if end == ";":
            continue
        position = _closing_brace(text, position)
        if kind == "entry":
            body = text[function.end() : position - 1]
            module.kernels[name] = _KernelParser(name, parameters or "", attributes).parse(body)
    _declare(module.variables, text[position:])
    return module


def _closing_brace(text: str, position: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, position):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.end()
    raise SyntaxError("a function's body does not end")


def _declare(variables: dict[str, Variable], text: str) -> None:
    for space, alignment, type_, name, brackets, count, initial in VARIABLE.findall(text):
        size = bits_of(type_) // 8
        length = (int(count) if count else 0) if brackets else 1
        variables[name] = Variable(
            name, space, int(alignment or size), size * length, _initial_bytes(initial, type_)
        )


def _initial_bytes(initial: str, type_: str) -> bytes:
    if not initial:
        return b""
    size = bits_of(type_) // 8
    if re.search(r"generic|[A-Za-z_$]\w*\s*[+)]", initial):
        raise UnsupportedPtxError(
            f"a variable whose initial value is an address: {initial.strip()[:60]}"
        )
    pattern = r"0[fFdD]([0-9a-fA-F]+)" if type_[0] == "f" else r"(0x[0-9a-fA-F]+|-?\d+)"
    base = 16 if type_[0] == "f" else 0
    mask = (1 << (8 * size)) - 1
    values = (int(value, base) & mask for value in re.findall(pattern, initial))
    return b"".join(value.to_bytes(size, "little") for value in values)


def split_operands(text: str) -> list[str]:
    """Split at the commas that are outside of every bracket."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        parts.append(current.strip())
    return parts


class _KernelParser:
    def __init__(self, name: str, parameters: str, attributes: str) -> None:
        self.kernel = Kernel(name)
        self.scopes: list[dict[str, Register]] = [{}]  # inline assembly opens scopes of its own
        self.line: SourceLine | None = None
        offset = 0
        for text in split_operands(parameters):
            found = PARAMETER.match(text)
            if found is None:
                raise SyntaxError(f"kernel parameter {text!r}")
            size = bits_of(found["type"]) // 8
            alignment = int(found["align"] or size)
            offset = -(-offset // alignment) * alignment
            size *= int(found["count"] or 1)
            self.kernel.parameters.append(Parameter(found["name"], offset, size))
            offset += size
        threads = re.search(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", attributes)
        if threads:
            self.kernel.max_threads = _product(threads.group(1))
        cluster = re.search(r"\.reqnctapercluster\s+([\d,\s]+)", attributes)
        if cluster:
            sizes = [int(n) for n in cluster.group(1).split(",")] + [1, 1]
            self.kernel.cluster = (sizes[0], sizes[1], sizes[2])

    def parse(self, body: str) -> Kernel:
        position = 0
        while not BLANK.match(body, position):
            statement = STATEMENT.match(body, position)
            if statement is None:
                raise SyntaxError(f"PTX statement {body[position : position + 80]!r}")
            position = statement.end()
            self._statement(statement)
        self._append(Instruction("ret", (), (), None, False, self.line, "ret"))
        return self.kernel

    def _statement(self, statement: re.Match[str]) -> None:
        if statement["loc"]:
            self._location(statement["loc"])
        elif statement["label"]:
            self.kernel.labels[statement["label"]] = len(self.kernel.code)
        elif statement["brace"] == "{":
            self.scopes.append({})
        elif statement["brace"] == "}":
            self.scopes.pop()
        elif statement["declaration"]:
            self._declaration(statement["declaration"])
        elif statement["instruction"] and statement["instruction"].strip():
            self._append(self._instruction(statement["instruction"].strip()))

    def _append(self, instruction: Instruction) -> None:
        instruction.index = len(self.kernel.code)
        self.kernel.code.append(instruction)

    def _location(self, text: str) -> None:
        words = text.split()
        inlined = re.search(r"inlined_at (\d+) (\d+)", text)
        caller = (int(inlined.group(1)), int(inlined.group(2))) if inlined else None
        self.line = SourceLine(int(words[1]), int(words[2]), caller)

    def _declaration(self, text: str) -> None:
        directive, rest = text.split(None, 1)
        if directive == ".shared":
            _declare(self.kernel.shared, text + ";")
        elif directive == ".local":
            found = re.search(r"\.(\w+)\s+[\w$]+\[(\d+)\]", rest)
            self.kernel.local_bytes += bits_of(found[1]) // 8 * int(found[2]) if found else 8
        else:
            type_, names = rest.split(None, 1)
            for name in split_operands(names):
                counted = re.fullmatch(r"([%\w$]+)<(\d+)>", name)
                if counted:
                    for number in range(int(counted[2])):
                        self._register(f"{counted[1]}{number}", type_[1:])
                else:
                    self._register(name, type_[1:])

    def _register(self, name: str, type_: str) -> None:
        slot = len(self.kernel.register_types)
        self.scopes[-1][name] = Register(slot, type_)
        self.kernel.register_types.append(type_)

    def _instruction(self, text: str) -> Instruction:
        shown = " ".join(text.split())
        guard, negated = None, False
        guarded = re.match(r"@(!?)([%\w$]+)\s+(.*)", text, re.S)
        if guarded:
            guard = self._find(guarded[2])
            if guard is None:
                raise SyntaxError(f"unknown predicate in {shown!r}")
            negated, text = bool(guarded[1]), guarded[3]
        words = text.split(None, 1)
        opcode, *modifiers = words[0].split(".")
        operands = [self._operand(t) for t in split_operands(words[1] if len(words) > 1 else "")]
        return Instruction(
            opcode, tuple(modifiers), tuple(operands), guard, negated, self.line, shown
        )

    def _find(self, name: str) -> Register | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def _operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(self._operand(part) for part in split_operands(text[1:-1])))
        if text[0] == "[":
            found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
            if found is None:
                raise UnsupportedPtxError(f"address {text}")
            base = self._operand(found[1])
            assert isinstance(base, Register | Symbol | Immediate)
            return Address(base, int(found[2] or "0", 0))
        if "|" in text:
            return Vector(tuple(self._operand(part.strip()) for part in text.split("|")))
        if text[0] == "!":
            register = self._find(text[1:].strip())
            if register is None:
                raise SyntaxError(f"operand {text!r}")
            return Negated(register)
        if text == "_":
            return None
        register = self._find(text)
        if register is not None:
            return register
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return Immediate(int(text[2:], 16), "f32")
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return Immediate(int(text[2:], 16), "f64")
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0), "int")
        return Symbol(text)


def _product(numbers: str) -> int:
    product = 1
    for number in numbers.split(","):
        product *= int(number)
    return product
