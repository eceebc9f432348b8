import sys
from pathlib import Path

from megatron_process import in_megatron_process

__all__ = ["in_megatron_process"]

# The examples are scripts that lie beside the package `pipeline`.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
