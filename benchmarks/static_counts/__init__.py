"""What compilers made of our kernels and of others' Triton kernels, counted alike. No GPU."""

import sys
from pathlib import Path

# The disassembler and the counting rules are those that the tests check our kernels with.
sys.path.append(str(Path(__file__).parents[2] / "tests" / "gpu"))
