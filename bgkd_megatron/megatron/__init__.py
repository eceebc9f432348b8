"""Megatron-Core: models, the loss hook, data, checkpoints and the training loop.

Importing this package does not import Megatron; its modules do.  On a machine without a GPU call
bgkd_megatron.megatron.cpu_compat.install() before importing any of them.
"""
