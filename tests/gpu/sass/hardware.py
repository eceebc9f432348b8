"""What the GPUs offer, for each of their multiprocessors (SMs)."""

from __future__ import annotations

import re
from dataclasses import dataclass

RESERVED_SHARED = 1024  # bytes the system takes from each block's shared memory


@dataclass(frozen=True)
class Gpu:
    capability: int
    sms: int
    clock: float  # GHz, sustained
    bandwidth: float  # TB/s of device memory
    shared: int = 228 * 1024
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32

    @property
    def bytes_per_clock(self) -> float:
        """Of device memory, for each SM."""
        return self.bandwidth * 1e12 / (self.sms * self.clock * 1e9)

    def bytes_in_flight_needed(self, latency: float = 700e-9) -> float:
        """Little's law for one SM; the latency includes queueing under load."""
        return self.bandwidth * 1e12 / self.sms * latency

    def blocks_per_sm(self, threads: int, registers: int, shared: int) -> int:
        """shared: with RESERVED_SHARED. Registers are given to warps in steps of 256, and warps
        belong to one of four schedulers."""
        warps = -(-threads // 32)
        registers_of_warp = -(-registers * 32 // 256) * 256
        by_registers = self.registers // registers_of_warp // 4 * 4 // warps
        by_shared = self.shared // max(1, -(-shared // 128) * 128)
        return min(by_registers, by_shared, self.threads // (warps * 32), self.blocks)


GPUS = {
    "A100": Gpu(80, 108, 1.41, 2.04, shared=164 * 1024),
    "H100": Gpu(90, 132, 1.755, 3.35),
    "H200": Gpu(90, 132, 1.755, 4.8),
    "B200": Gpu(100, 148, 1.85, 8.0),
}

# Results for each clock and SM (CUDA programming guide, throughput of arithmetic instructions).
# "issue" is the four schedulers' 32 threads each.
RATES = {
    80: {"fma": 64, "alu": 64, "mufu": 16, "lsu": 32, "issue": 128},
    90: {"fma": 128, "alu": 64, "mufu": 16, "lsu": 32, "issue": 128},
    100: {"fma": 128, "alu": 64, "mufu": 16, "lsu": 32, "issue": 128},
}

# Which pipe an opcode takes, first match. Conversions to packed 16-bit floats (F2FP) are counted at
# the rate of the special-function unit, which is pessimistic.
PIPES = (
    (re.compile(r"MUFU|F2F|I2F|F2I|POPC|FLO|BREV"), "mufu"),
    (re.compile(r"FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2|IMAD|IDP"), "fma"),
    (re.compile(r"LDG|STG|LDS|STS|LDL|STL|SHFL|ATOM|RED|LDC"), "lsu"),
    (re.compile(r"BRA|EXIT|BAR|BSYNC|BSSY|WARPSYNC|NOP|YIELD|R2UR|S2UR|U[A-Z]"), "control"),
    (re.compile(""), "alu"),
)
# Opcodes that hold their pipe longer: packed pairs of singles, integer multiply-add.
SLOTS = {"FFMA2": 2, "FADD2": 2, "FMUL2": 2, "IMAD": 2}


def pipe_of(opcode: str) -> str:
    return next(pipe for pattern, pipe in PIPES if pattern.match(opcode))
