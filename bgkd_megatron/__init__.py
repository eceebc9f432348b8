"""Bridge-Garden knowledge distillation for Megatron-Core.

Importing this package imports neither Megatron nor Transformer Engine, and changes nothing in
PyTorch.
"""

__version__ = "0.1.0"
