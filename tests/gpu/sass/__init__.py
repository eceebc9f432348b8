"""Static checks of compiled kernels: registers, spills, access widths, instructions, roofline."""

from .disassembly import SassInstruction, SassKernel, ToolsMissingError, disassemble
from .figures import Figures, Roofline, measure
from .limits import KernelLimits, read_limits
from .report import Report, check, describe, table

__all__ = [
    "Figures",
    "KernelLimits",
    "Report",
    "Roofline",
    "SassInstruction",
    "SassKernel",
    "ToolsMissingError",
    "check",
    "describe",
    "disassemble",
    "measure",
    "read_limits",
    "table",
]
