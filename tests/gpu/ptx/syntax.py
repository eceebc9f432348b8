"""What a PTX module consists of once it is parsed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .scalar_types import TYPE


class UnsupportedPtxError(NotImplementedError):
    """An instruction or a form of one that the executor does not know. It never guesses."""


@dataclass(frozen=True)
class Register:
    slot: int
    type: str


@dataclass(frozen=True)
class Immediate:
    """`bits` is the value of an integer, or the bit pattern of an f32 or f64."""

    bits: int
    kind: str  # "int", "f32", "f64"


@dataclass(frozen=True)
class Symbol:
    """A variable, a special register, a parameter, a label."""

    name: str


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b, c}, and also a|b."""

    parts: tuple[Operand, ...]


@dataclass(frozen=True)
class Negated:
    register: Register


Operand = Register | Immediate | Symbol | Address | Vector | Negated | None  # None is `_`


@dataclass(frozen=True)
class SourceLine:
    file: int
    line: int
    inlined_at: tuple[int, int] | None = None


@dataclass
class Instruction:
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    guard_negated: bool
    line: SourceLine | None
    text: str
    index: int = -1
    # what the executor made of it, once for all launches and all kernels that share it
    decoded: object = field(default=None, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return ".".join((self.opcode, *self.modifiers))

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(m for m in self.modifiers if TYPE.match(m))

    @property
    def type(self) -> str:
        """The last type named, which is the type of the sources."""
        if not self.types:
            raise UnsupportedPtxError(self.text)
        return self.types[-1]

    def has(self, *modifiers: str) -> bool:
        return any(m in self.modifiers for m in modifiers)

    def only(self, *allowed: str) -> None:
        """Raises unless every modifier that is not a type is one of these."""
        for modifier in self.modifiers:
            if modifier not in allowed and not TYPE.match(modifier):
                raise UnsupportedPtxError(f".{modifier} of {self.text!r}")

    def one_of(self, choices: Iterable[str]) -> str | None:
        found = [m for m in self.modifiers if m in choices]
        return found[0] if found else None


@dataclass(frozen=True)
class Parameter:
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Variable:
    """A .global, .const or .shared variable. size 0: dynamic shared memory."""

    name: str
    space: str
    alignment: int
    size: int
    data: bytes = b""


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter] = field(default_factory=list)
    register_types: list[str] = field(default_factory=list)
    shared: dict[str, Variable] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    max_threads: int | None = None
    cluster: tuple[int, int, int] | None = None  # required by __cluster_dims__

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.size for p in self.parameters), default=0)

    def symbols(self) -> set[str]:
        """Every name that the code mentions."""
        names: set[str] = set()

        def visit(operand: Operand) -> None:
            if isinstance(operand, Symbol):
                names.add(operand.name)
            elif isinstance(operand, Address):
                visit(operand.base)
            elif isinstance(operand, Vector):
                for part in operand.parts:
                    visit(part)

        for instruction in self.code:
            for operand in instruction.operands:
                visit(operand)
        return names


@dataclass
class Module:
    kernels: dict[str, Kernel]
    variables: dict[str, Variable]
    files: dict[int, str]
    target: str = ""

    def kernel(self, name: str) -> Kernel:
        """The kernel of this mangled name, or the only one whose mangled name contains it."""
        if name in self.kernels:
            return self.kernels[name]
        found = [k for n, k in self.kernels.items() if name in n]
        if len(found) != 1:
            raise KeyError(f"{len(found)} kernels match {name!r}; there are {sorted(self.kernels)}")
        return found[0]

    def describe(self, instruction: Instruction) -> str:
        """Source line (and the line that inlined it) and opcode of an instruction."""
        place = instruction.line
        if place is None:
            return f"`{instruction.text}`"

        def name(file: int, line: int) -> str:
            return f"{self.files.get(file, '?').rsplit('/', 1)[-1]}:{line}"

        text = name(place.file, place.line)
        if place.inlined_at:
            text += f" (inlined at {name(*place.inlined_at)})"
        return f"{text} `{instruction.name}`"
