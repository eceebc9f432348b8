from megatron_process import in_megatron_process

__all__ = ["in_megatron_process"]
