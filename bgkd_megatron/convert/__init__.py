"""Hugging Face checkpoints (and GGUF files) <-> model directories of this project.

mapping.py is the one table of names and layouts, used in both directions; hf_checkpoint.py and
the gguf modules read what others write; from_hf.py and to_hf.py are the commands.
"""
