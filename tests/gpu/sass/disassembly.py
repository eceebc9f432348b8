"""A cubin as text: what each kernel needs, and its instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from compiler import find_tool, run_tool

FUNCTION = re.compile(r"\s*Function (\S+):")
USAGE = re.compile(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
SECTION = re.compile(r"\.text\.(\S+):")
LABEL = re.compile(r"(\.L_\S+):")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")
# The second one is of cubins in the format of CUDA 12.
TARGET = re.compile(r"\.target\s+(sm_\w+)|EF_CUDA_SM(\d+)")
BRANCH_TARGET = re.compile(r"`\((\.L_\S+?)\)")
WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int  # bytes for each thread: spilled registers and local arrays
    shared: int  # bytes for each block, what the system reserves included from sm_90 on
    local: int


@dataclass(frozen=True)
class SassInstruction:
    opcode: str  # with its modifiers
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def width(self) -> int:
        """Bytes that a memory access moves for each thread."""
        named = (WIDTHS[m] for m in self.opcode.split(".")[1:] if m in WIDTHS)
        return next(named, 4)


@dataclass
class SassKernel:
    name: str
    target: str  # "sm_90a"
    resources: Resources
    code: list[SassInstruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def capability(self) -> int:
        """90 for sm_90a."""
        found = re.match(r"sm_(\d+)", self.target)
        assert found is not None
        return int(found[1])

    def innermost_loops(self) -> list[list[SassInstruction]]:
        """Code between a backward branch and its target, where no other such loop lies within."""
        spans = []
        for at, instruction in enumerate(self.code):
            target = BRANCH_TARGET.search(instruction.operands)
            if instruction.base == "BRA" and target and self.labels.get(target[1], at) < at:
                spans.append((self.labels[target[1]], at))
        return [
            self.code[first : last + 1]
            for first, last in spans
            if not any((a, b) != (first, last) and first <= a and b <= last for a, b in spans)
        ]


class ToolsMissingError(FileNotFoundError):
    pass


def disassemble(cubin: Path) -> list[SassKernel]:
    resources = _resources(run_tool([_tool("cuobjdump"), "--dump-resource-usage", str(cubin)]))
    text = run_tool([_tool("nvdisasm"), "-c", str(cubin)])
    found = TARGET.search(text)
    assert found is not None
    target = found[1] or f"sm_{found[2]}"
    kernels: dict[str, SassKernel] = {}
    current: SassKernel | None = None
    for line in text.splitlines():
        section, label, instruction = (
            SECTION.match(line),
            LABEL.match(line),
            INSTRUCTION.match(line),
        )
        if section:
            name = section[1]
            current = None
            if name in resources:
                current = kernels[name] = SassKernel(name, target, resources[name])
        elif current is None:
            continue
        elif label:
            current.labels[label[1]] = len(current.code)
        elif instruction:
            current.code.append(SassInstruction(instruction[1], instruction[2]))
    return list(kernels.values())


def _tool(name: str) -> str:
    path = find_tool(name)
    if path is None:
        raise ToolsMissingError(
            f"{name} is not on PATH, in CUDA_HOME or in site-packages: pip install '.[gpu-proof]'"
        )
    return str(path)


def _resources(text: str) -> dict[str, Resources]:
    found: dict[str, Resources] = {}
    name = ""
    for line in text.splitlines():
        function, usage = FUNCTION.match(line), USAGE.match(line)
        if function:
            name = function[1]
        elif usage and name:
            found[name] = Resources(*(int(n) for n in usage.groups()))
    return found
