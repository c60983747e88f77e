"""Series of one's own, from tables of text as people have them."""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_memory.data.sequences.rows import in_order
from pyro_memory.data.sequences.series import Series
from pyro_memory.data.sequences.stamps import looks_like_times, moments, shown
from pyro_memory.gate import checked

TIMES = {"time", "date", "datetime", "date_time", "timestamp", "ts", "ds", "year", "zeit", "datum", "zeitpunkt", "jahr"}
MISSING = ["-", "--", "?", ".", "missing"]  # beside what pandas takes for missing
COMMA, POINT = (re.compile(rf"(?<![\d.,:/-])-?\d+[{mark}]\d+(?![\d.,:])") for mark in ",.")
NUMBERLIKE = re.compile(r"[-+]?[\d.,'’\s]*\d[\d.,'’\s]*%?$")


@checked
def series_csv(
    path: str | Path,
    *,
    time: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    gaps: str = "filled",
    zone: str | None = None,
    date_format: str | None = None,
    decimal: str | None = None,
    encoding: str = "utf-8",
) -> Series:
    """Reads a table of text (csv), plain or compressed with gzip, as series over one time.

    Separators (comma, semicolon, tab), decimal commas, dates and the column of times are found; what could be meant in
    two ways is refused, with what to give. Marks of thousands and units are not read: columns with them are refused, or
    left out, with a warning. Rows are brought into the order of time. Missing cells, and times that a regular series
    lacks, become rows or numbers that were not observed (``Series.observed``), filled with the last number; a warning
    counts them and names the first.

    Args:
        path: the file.
        time: the column of times, or several that together say it, as ("Date", "Time"); by default the one called so,
            or the first that holds dates. Without any, rows follow each other: a warning says so, or give ``[]``.
        columns: which columns; by default all that hold numbers.
        split: the shares of the train, validation and test parts, one after the other.
        gaps: "filled": times must be of one step (of minutes, of months, of working days, ...), and those that are
            missing are filled in as not observed. "joined": rows are taken as they follow each other.
        zone: whose clock the times show, as "Europe/Berlin", where they are local times that clock changes make uneven:
            the hour that occurs twice is told apart by its order, and times become UTC. Not for times that say their
            offset, nor for numbers such as seconds since 1970.
        date_format: how times are written, as "%d.%m.%Y %H:%M", where that is not found.
        decimal: "." or ",", where both occur, or where marks could be of thousands: 1,234.
        encoding: of the file.

    Raises:
        ImportError: without pandas.
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such table, a time occurs twice with different numbers, or an argument is unusable; the
            first bad cell or time is named.

    Example::

        series = series_csv("meter.csv", columns=["kWh"])
        past, future, _, seen = series.windows("train", past=96, horizon=24, batch=8, observed=True)[0]
    """
    pandas = _pandas()
    shares = np.cumsum(split)
    if len(split) != 3 or not (min(split) >= 0 and split[0] > 0 and shares[-1] <= 1 + 1e-9):
        raise ValueError(f"`split` must be three shares, of train, validation and test, of at most 1; got {split}")
    if gaps not in ("filled", "joined"):
        raise ValueError(f'`gaps` must be "filled" or "joined"; got {gaps!r}')
    if decimal not in (None, ".", ","):
        raise ValueError(f'`decimal` must be "." or ","; got {decimal!r}')
    frame = _frame(pandas, Path(path), encoding, decimal)
    frame, times = _times(pandas, frame, time, date_format, zone)
    values, text = _numbers(pandas, frame, columns)
    told = _left_out(frame, text, searched=time is None and times is None) + _empty(values, times)
    if times is not None:
        values, times, more = in_order(pandas, values, times, zone, gaps)
        told += more
    for said in told:
        warnings.warn(f"{path}: {said}", stacklevel=3)
    numbers = values.to_numpy(np.float64, copy=True)
    ends = [round(share * len(numbers)) for share in np.minimum(shares, 1)]
    if ends[0] < 2:
        raise ValueError(
            f"`split` must leave two rows to train on, at least; {split[0]:g} of {len(numbers)} is {ends[0]}"
        )
    return Series(torch.from_numpy(numbers), tuple(values.columns), ends, ~np.isnan(numbers), times)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("`series_csv` reads tables by pandas: pip install 'pyro-memory[tables]'") from error
    return pandas


def _frame(pandas: Any, path: Path, encoding: str, decimal: str | None) -> Any:
    """The table, numbers as numbers where all of a column are, and texts as they are."""
    text = _text(path, encoding)
    lines = [line for line in text.split("\n", 50) if line.strip()][:50]
    if len(lines) < 2:
        raise ValueError(f"`path` must be a table with a line of titles and lines of numbers; {path} has {len(lines)}")
    bare = [re.sub('"[^"]*"', "", line) for line in lines]
    marks = {mark: [line.count(mark) for line in bare] for mark in ";\t,"}
    separator = max(marks, key=lambda mark: (marks[mark][0], marks[mark].count(marks[mark][0])))
    head, *rows = csv.reader(lines[:-1] if len(lines) > 2 else lines, delimiter=separator)
    first = zip(head, rows[0] if rows else (), strict=False)
    if len(head) > 1 and (
        all(NUMBERLIKE.match(cell.strip()) or looks_like_times([cell]) for cell in head)
        or any(looks_like_times([title]) and looks_like_times([cell]) for title, cell in first)
    ):
        raise ValueError(f"`path` must begin with a line of titles; {path} begins with {lines[0].strip()!r}. Add one")
    if rows and len(rows[0]) > len(head) and any(cell.strip() for cell in rows[0][len(head) :]):
        raise ValueError(f"`path` must have a title for each column; {path} has {len(head)} and rows of {len(rows[0])}")
    found = decimal or ("." if separator == "," else _decimal(text, path))
    options = {"sep": separator, "na_values": MISSING, "index_col": False, "skipinitialspace": True}
    try:
        frame = pandas.read_csv(io.StringIO(text), decimal=found, low_memory=False, **options)
    except (pandas.errors.ParserError, ValueError) as error:
        raise ValueError(
            f"{path} is no table: {str(error).strip()}. Mend that line, or save it again as csv"
        ) from error
    if decimal is None and separator != ",":
        broken = np.flatnonzero([kind.kind == "f" for kind in frame.dtypes])
        _check_decimal(pandas.read_csv(io.StringIO(text), dtype=str, **options).iloc[:, broken], found, path)
    held = np.flatnonzero(frame.notna().any(axis=1))
    frame = frame.iloc[: held[-1] + 1 if len(held) else 0]  # some programs leave lines of separators at the end
    frame.columns = [str(name).strip() for name in frame.columns]
    unnamed = [name for name in frame.columns if name.startswith("Unnamed: ")]
    counts = np.arange(len(frame))
    return frame.drop(columns=[n for n in unnamed if frame[n].isna().all() or np.array_equal(frame[n], counts)])


def _text(path: Path, encoding: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file of text (csv), plain or compressed; there is no {path}")
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no gzip ({error}); fetch it again") from error
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(f"`path` must be text; {path} is a workbook or an archive. Save the table as csv")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else encoding
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in the `encoding` {encoding!r}: {error.reason} at byte {error.start}. Give its own, as "
            'encoding="cp1252" for tables of older Windows programs'
        ) from error
    except LookupError as error:
        raise ValueError(f'`encoding` must be one that Python knows, as "utf-8"; got {encoding!r}') from error
    if "\0" in text:
        raise ValueError(f"`path` must be text; {path} holds bytes of zero. Save the table as csv, in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decimal(text: str, path: Path) -> str:
    comma, point = COMMA.search(text), POINT.search(text)
    if comma and point:
        raise ValueError(
            f'`decimal` must be given: {path} holds {comma[0]!r} and {point[0]!r}. Give decimal="," or decimal="."'
        )
    return "," if comma else "."


def _check_decimal(texts: Any, mark: str, path: Path) -> None:
    """Raises where the mark may as well be of thousands: three digits follow it, and nothing says that it is not."""
    thousands = re.compile(rf"[-+]?[1-9]\d?\d?{re.escape(mark)}\d{{3}}$")
    doubtful, sure = [], False
    for name in texts.columns:
        cells = texts[name].dropna().str.strip()
        marked = cells.str.contains(mark, regex=False)
        whole = cells[~marked]
        if not cells[marked].str.match(thousands).all() or (marked.any() and whole.str.match(r"[-+]?\d{4}").any()):
            sure = True
        elif marked.any():
            doubtful.append((name, cells[marked].iloc[0], len(whole)))
    for name, cell, mixed in doubtful:
        if mixed or not sure:
            raise ValueError(
                f"`decimal` must be given: in {path}, {cell!r} of column {name!r} may have three decimals, or a mark "
                'of thousands. Give decimal="," or decimal="."'
            )


def _times(
    pandas: Any, frame: Any, time: Any, date_format: str | None, zone: str | None
) -> tuple[Any, np.ndarray | None]:
    """The frame without its column of times, and the times."""
    names = _time_columns(pandas, frame) if time is None else [time] if isinstance(time, str) else list(time)
    lacking = [name for name in names if name not in frame.columns]
    if lacking:
        raise ValueError(f"`time` must be a column, of {', '.join(frame.columns)}; got {lacking[0]!r}")
    if not names:
        return frame, None
    cells = frame[names[0]]
    if len(names) > 1:
        cells = frame[names].astype(str).agg(" ".join, axis=1).where(frame[names].notna().all(axis=1))
    return frame.drop(columns=names), moments(pandas, cells, " ".join(names), date_format, zone)


def _time_columns(pandas: Any, frame: Any) -> list[str]:
    text = {name: not pandas.api.types.is_numeric_dtype(frame[name]) for name in frame.columns}
    named = [name for name in frame.columns if name.lower().replace(" ", "_") in TIMES]
    if [name.lower() for name in named] == ["date", "time"] and all(text[name] for name in named):
        return named
    dated = [name for name in frame.columns if text[name] and looks_like_times(frame[name].tolist()[:100])]
    return (named or dated)[:1]


def _numbers(pandas: Any, frame: Any, columns: Sequence[str] | None) -> tuple[Any, dict[str, str]]:
    """The columns of numbers; and those of text, each with a cell that was to be a number, if it has such.

    Raises:
        ValueError: naming a cell that is none, where one was wanted or others of its column are.
    """
    lacking = [name for name in columns or () if name not in frame.columns]
    if lacking:
        raise ValueError(f"`columns` must be of {', '.join(frame.columns)}; got {lacking[0]!r}")
    numeric = [name for name in frame.columns if pandas.api.types.is_numeric_dtype(frame[name])]
    text = dict.fromkeys((name for name in frame.columns if name not in numeric), "")
    for name in frame.columns if columns is None else columns:
        if name in numeric:
            continue
        cells = frame[name].dropna().astype(str).str.strip()
        dated = cells.map(lambda cell: looks_like_times([cell])).astype(bool)
        like = cells.str.match(NUMBERLIKE) & ~dated
        if columns is not None or (len(cells) and like.mean() > 0.5):
            plain = [pandas.to_numeric(cells.str.replace(mark, "."), errors="coerce").isna() for mark in ".,"]
            bad = min(plain, key=sum)  # by the decimal mark of most
            bad = bad if bad.any() else ~cells.str.match(r"[-+]?\d+$")
            raise ValueError(
                f"`columns` must hold numbers; column {name!r} has {cells[bad].iloc[0]!r} in row "
                f"{cells[bad].index[0] + 1}. Mend it (marks of thousands and units are not read), or name "
                "the others in `columns`"
            )
        digits = cells.str.match(r"[-+]?\d") & ~dated
        if like.any() or digits.mean() > 0.5:
            text[name] = cells[like | digits].iloc[0]
    chosen = list(columns) if columns is not None else [n for n in numeric if frame[n].notna().any()]
    if not chosen:
        raise ValueError(f"`columns` must hold numbers; none of {', '.join(frame.columns) or 'no columns'} does")
    return frame[chosen].astype(np.float64), text


def _left_out(frame: Any, text: dict[str, str], *, searched: bool) -> list[str]:
    """What is to be told of columns of text: where no times were found, and where they hold numbers."""
    if searched:
        cells = [f"{name!r} ({frame[name].dropna().iloc[0]!r})" for name in text]
        left = f"; left out: {', '.join(cells)}" if text else ""
        return [
            f"no column of times was found, rows are taken as they follow each other{left}. Give `time`, with its form "
            "in `date_format`, or time=[] if there is none"
        ]
    numbers = [f"{name!r} ({cell!r})" for name, cell in text.items() if cell]
    if not numbers:
        return []
    return [
        f"columns of text that hold numbers are left out: {', '.join(numbers)}. Mend them (units are not read), or "
        "name the columns that are wanted in `columns`"
    ]


def _empty(values: Any, times: np.ndarray | None) -> list[str]:
    """What is to be told of empty cells."""
    empty = values.isna().to_numpy()
    if not empty.any():
        return []
    row, column = np.argwhere(empty)[0]
    at = f"row {row + 1}" if times is None else shown(times[row])
    return [
        f"{empty.sum()} cells are empty, the first in column {values.columns[column]!r} at {at}; they are not "
        "observed, and filled with the last number"
    ]
