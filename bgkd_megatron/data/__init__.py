"""Text and chat records -> Megatron's indexed dataset, with a loss mask beside it where needed.

documents.py reads records, encode.py and chat.py tokenize them, indexed.py writes the files and
prepare.py is the command (``python -m bgkd_megatron.data.prepare --help``).
"""
