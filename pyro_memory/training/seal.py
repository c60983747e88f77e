"""Safetensors files with checksums, of the header and of the tensors, so that no changed byte passes unseen."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

SEAL, BLANK = "seal", "0" * 16
MARK = b'"seal":"'  # unescaped, as nothing inside a string of JSON is


class Damaged(ValueError):
    """Says what of a file is not as it was written."""


def save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes the file under this very name: safetensors' own function leaves another one where it is killed."""
    content = save(tensors, metadata | {SEAL: BLANK})
    end = 8 + int.from_bytes(content[:8], "little")
    head, data = bytearray(content[:end]), memoryview(content)[end:]
    at = head.index(MARK) + len(MARK)
    head[at + 8 : at + 16] = _sum(data)
    head[at : at + 8] = _sum(head)  # with zeros in its own place
    with open(path, "wb") as file:
        file.write(head)
        file.write(data)


def load_file(path: str | Path, *, tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Reads metadata and, if asked, tensors; compares the checksums of what is read, where the file has them.

    The file is opened once: one that another process replaces meanwhile is read whole, the old one or the new.

    Raises:
        Damaged: where a checksum differs, or the header is cut or none.
        SafetensorError: where the tensors are not as the header says.
    """
    with open(path, "rb") as file:
        size = file.read(8)
        length = int.from_bytes(size, "little")
        left = os.fstat(file.fileno()).st_size - 8 - length
        if len(size) < 8 or left < 0:
            raise Damaged("its header is cut")
        head = bytearray(size + file.read(length))
        data = file.read() if tensors else b""
    at = head.find(MARK) + len(MARK)
    if at >= len(MARK):
        kept, of_tensors = bytes(head[at : at + 8]), bytes(head[at + 8 : at + 16])
        head[at : at + 8] = b"0" * 8
        if kept != _sum(head):
            raise Damaged("its header is not as it was written")
        if tensors and of_tensors != _sum(data):
            raise Damaged("its tensors are not as they were written")
    header: dict[str, Any] = json.loads(bytes(head[8:]))
    metadata = dict(header.pop("__metadata__"))
    if left != max((entry["data_offsets"][1] for entry in header.values()), default=0):
        raise Damaged("its tensors are cut, or more follows")
    return metadata, load(bytes(head) + data) if tensors else {}


def _sum(content: bytes | bytearray | memoryview) -> bytes:
    return b"%08x" % zlib.crc32(content)
