"""Text as characters: plain files, or the prose that the standard library carries."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from pyro_memory.data.given import Numbers, integers
from pyro_memory.data.seeds import below, generator_for
from pyro_memory.gate import checked, told
from pyro_memory.naming import call_of

SPLITS = ("train", "valid", "test")
Paths: TypeAlias = Any  # a path, or several in a list


@checked
def load_text(data_dir: str | Path | None = None, *, encoding: str = "utf-8") -> str:
    """Reads a text: one file, or all of a folder in the order of their names; plain, or compressed with gzip.

    Args:
        data_dir: a ``.txt`` or ``.txt.gz`` file, or a folder of them. By default the embedded text: the language
            reference of Python that ``pydoc_data.topics`` holds, 460,000 characters, which differ a little from one
            version of Python to the next.
        encoding: of all files; read those of another one by one, as "latin-1" for older books of Project Gutenberg. A
            byte order mark is left out.

    Raises:
        FileNotFoundError: if there is no such file, or no text in the folder.
        ValueError: if a compressed file is damaged, or a file is not in that encoding.
    """
    if data_dir is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    path = Path(data_dir)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.name.endswith((".txt", ".txt.gz")))
    if not files:
        raise FileNotFoundError(
            f"`data_dir` must be a text file or a folder that holds .txt or .txt.gz files; found none at {path}. Give "
            "no folder to use the embedded text"
        )
    return "\n\n".join(_read(file, encoding) for file in files)


def _read(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    if path.name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or no gzip ({error}); fetch it again") from error
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in the `encoding` {encoding!r}: {error.reason} at byte {error.start}, "
            f"{content[error.start : error.start + 4]!r}. It is cut or damaged, or give its encoding, "
            'as encoding="latin-1"'
        ) from error
    except LookupError as error:
        raise ValueError(f'`encoding` must be one that Python knows, as "utf-8"; got {encoding!r}') from error


@checked
@dataclass(frozen=True, eq=False)
class CharacterText:
    """A text as numbers, a character each, cut into train, validation and test parts that follow each other.

    Attributes:
        text: the whole.
        valid, test: the shares of the last parts.
        extra: characters that the vocabulary holds beside those of the text.
    """

    text: str
    valid: float = 0.05
    test: float = 0.05
    extra: str = ""

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("`text` must hold characters; got none")
        shares = self.valid >= 0 and self.test >= 0 and self.valid + self.test < 1  # false of NaN
        if not shares or not self.part("train"):
            raise ValueError(
                f"`valid` and `test` must be shares that leave some text to train on; got {self.valid} and {self.test}"
            )

    def __repr__(self) -> str:
        return f"CharacterText({len(self.text):,} characters, {len(self.vocabulary)} different)"

    @cached_property
    def vocabulary(self) -> str:
        """The characters in order of their code points; a token is a place in it."""
        return "".join(sorted(set(self.text) | set(self.extra)))

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.vocabulary)}

    def encode(self, text: str) -> Int[Tensor, " time"]:
        """Gives the tokens of a text.

        Raises:
            ValueError: if it holds a character that the vocabulary lacks.
        """
        strange = sorted(set(text) - self._codes.keys())
        if strange:
            raise ValueError(
                f"`text` must use the characters of the vocabulary; {''.join(strange)!r} are not in it. Name them in "
                "`extra`"
            )
        return torch.tensor([self._codes[c] for c in text], dtype=torch.long, device="cpu")

    def decode(self, tokens: Numbers) -> str:
        """Gives the text of tokens.

        Raises:
            ValueError: naming the first that is no place in the vocabulary.
        """
        tokens = integers("tokens", tokens, low=0, high=len(self.vocabulary) - 1, item="token")
        if tokens.dim() != 1:
            raise ValueError(f"`tokens` must be one sequence, [time]; got shape {list(tokens.shape)}")
        return "".join(self.vocabulary[i] for i in tokens.tolist())

    def part(self, split: str) -> str:
        """Gives the text of "train", "valid" or "test"."""
        if split not in SPLITS:
            raise ValueError(f'`split` must be "train", "valid" or "test"; got {split!r}')
        ends = [0, *(round(len(self.text) * share) for share in (1 - self.valid - self.test, 1 - self.test, 1))]
        at = SPLITS.index(split)
        return self.text[ends[at] : ends[at + 1]]

    def batches(self, split: str, *, length: int, batch: int, seed: int = 0) -> TextBatches:
        """Gives random windows of one part, ``[step] -> (tokens [batch, length],)``."""
        return TextBatches(self.encode(self.part(split)), length=length, batch=batch, seed=seed)

    def windows(self, split: str, *, length: int) -> Int[Tensor, "window time"]:
        """Gives one part in windows that follow each other; what is left at its end is dropped."""
        tokens = self.encode(self.part(split))
        if len(tokens) < length:
            raise ValueError(f"`length` must be at most the {len(tokens)} characters of {split}; got {length}")
        return tokens[: len(tokens) // length * length].reshape(-1, length)


@checked
def text_files(
    path: Paths,
    *,
    encoding: str = "utf-8",
    valid: float = 0.05,
    test: float = 0.05,
    extra: str = "",
) -> CharacterText:
    """Reads texts of one's own as characters: files, one after the other, cut into parts at the end of the whole.

    Args:
        path: a file, plain or compressed with gzip; a folder, of which all ``.txt`` and ``.md`` are read, those of its
            sub-folders too, in the order of their names; or several of these. Hidden files are passed over.
        encoding: of all files. A byte order mark is left out, and ends of lines become ``\\n``.
        valid, test, extra: see ``CharacterText``.

    Raises:
        FileNotFoundError: if there is no such file, or no text in a folder.
        ValueError: naming the first file that is empty, damaged, no text or in another encoding.

    Example::

        text = text_files("letters")
        batches = text.batches("train", length=256, batch=8)
    """
    texts = []
    several = path if isinstance(path, (list, tuple)) else [path]
    strange = [given for given in several if not (isinstance(given, (str, os.PathLike)) and os.fspath(given))]
    if strange or not several:
        raise TypeError(f"`path` must be a file or a folder, or a list of them; got {told((strange or [path])[0])}")
    for given in several:
        for file in _texts(Path(given)):
            text = _read(file, encoding).replace("\r\n", "\n").replace("\r", "\n")
            if not text.strip():
                raise ValueError(f"`path` must hold text; {file} is empty. Leave it out")
            if "\0" in text:
                raise ValueError(f"`path` must hold text; {file} holds bytes of zero. If it is UTF-16, give `encoding`")
            texts.append(text)
    return CharacterText("\n\n".join(texts), valid, test, extra)


def _texts(path: Path) -> list[Path]:
    """A file, or the texts of a folder."""
    if path.is_file():
        return [path]
    inner = (file for file in path.rglob("*") if file.name.removesuffix(".gz").lower().endswith((".txt", ".md")))
    shown = (file for file in inner if not any(part.startswith(".") for part in file.relative_to(path).parts))
    files = sorted(file for file in shown if file.is_file())
    if not files:
        raise FileNotFoundError(
            f"`path` must be a text file, or a folder that holds .txt or .md files, plain or .gz; found none at {path}"
        )
    return files


@checked
class TextBatches:
    """Random windows of a sequence of tokens: ``batches[i]`` gives ``(tokens [batch, length],)``.

    ``tokens`` may be a tensor, array or list of any integer type.

    Raises:
        ValueError: if an argument is unusable.
    """

    def __init__(self, tokens: Numbers, *, length: int, batch: int, seed: int = 0) -> None:
        tokens = integers("tokens", tokens, low=0, high=2**31 - 1, item="token")
        if tokens.dim() != 1:
            raise ValueError(f"`tokens` must be one sequence, [time]; got shape {list(tokens.shape)}")
        if batch < 1 or not 1 <= length <= len(tokens):
            raise ValueError(
                f"`batch` must be at least 1 and `length` lie in 1 .. {len(tokens)}, the tokens there are; got {batch} "
                f"and {length}"
            )
        self.tokens = tokens
        self.length = length
        self.batch = batch
        self.seed = seed

    __repr__ = call_of

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "batch time"]]:
        starts = below(len(self.tokens) - self.length + 1, generator_for(self.seed, 5, index), self.batch, 1)
        return (self.tokens[starts + torch.arange(self.length, device="cpu")],)
