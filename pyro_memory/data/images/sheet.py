"""Labels of image files from a table of text: which line is of which file, and of which class."""

from __future__ import annotations

import codecs
import csv
import io
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from pyro_memory.data.images.reading import SUFFIXES

FILES = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "image_name", "img")
LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def labels_from(path: Path, names: Collection[str]) -> dict[str, str]:
    """Gives the label of each name of a file, as a table says.

    Raises:
        ValueError: naming the first line that cannot be meant, or the first file without a label.
    """
    rows = _rows(path)
    at, file_at, label_at, rows = _columns(path, rows)
    known = _spellings(names)
    labels: dict[str, str] = {}
    for line, row in enumerate(rows, at):
        if not any(cell.strip() for cell in row):
            continue
        file, label = (row[i].strip() if i < len(row) else "" for i in (file_at, label_at))
        if not label or not file:
            raise ValueError(
                f"`labels` must name a file and its label in each line; line {line} of {path} is {row}. Mend it"
            )
        found = known.get(_spelled(file), ())
        if len(found) != 1:
            what = f"fits {len(found)} files, as {found[0]}" if found else "is no image in the folder"
            raise ValueError(
                f"`labels` must name image files, from the folder on; {file!r} in line {line} of {path} {what}. "
                "Mend the line, or leave it out"
            )
        if labels.setdefault(found[0], label) != label:
            raise ValueError(
                f"`labels` must give one label a file; {path} gives {found[0]} {labels[found[0]]!r}, and {label!r} in "
                f"line {line}. Leave one out"
            )
    bare = [name for name in names if name not in labels]
    if bare:
        raise ValueError(
            f"`labels` must label every image of the folder; {len(bare)} of {len(names)} have no line in {path}, the "
            f"first is {bare[0]}. Add lines, or move these files out"
        )
    return labels


def _rows(path: Path) -> list[list[str]]:
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8; byte {error.start} is not ({error.reason}). Save it so"
        ) from error
    head = text.lstrip().partition("\n")[0]
    separator = max(";\t,", key=head.count)
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))


def _columns(path: Path, rows: list[list[str]]) -> tuple[int, int, int, list[list[str]]]:
    """The number of the first line of labels, the columns of files and labels, and the lines."""
    if not rows or max(map(len, rows)) < 2:
        raise ValueError(
            f"`labels` must be a table of a column of files and one of labels, divided by a comma, a semicolon or a "
            f"tab; {path} begins with {rows[0] if rows else 'nothing'}"
        )
    head = [cell.strip().lower() for cell in rows[0]]
    file_at = next((head.index(name) for name in FILES if name in head), None)
    label_at = next((head.index(name) for name in LABELS if name in head), None)
    if file_at is None and PurePosixPath(head[0]).suffix in SUFFIXES:
        return 1, 0, 1, rows  # no line of titles
    file_at = (1 if label_at == 0 else 0) if file_at is None else file_at
    label_at = (1 if file_at == 0 else 0) if label_at is None else label_at
    return 2, file_at, label_at, rows[1:]


def _spelled(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _spellings(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Files by path, by name, and by name without suffix; a path comes before the others."""
    short, whole = defaultdict(list), {name: (name,) for name in names}
    for name in names:
        path = PurePosixPath(name)
        for spelling in {path.name, path.stem, str(path.with_suffix(""))}:
            short[spelling].append(name)
    return {spelling: tuple(found) for spelling, found in short.items()} | whole
