"""Times as tables write them: which moment a cell means, and which step of a regular series a moment is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

DATE = re.compile(
    r"(\d{1,4})([-/. ])(\d{1,2})\2(\d{1,4})(?:[T ,]+(\d{1,2})([:.])\d{2}(?:(\6)\d{2}(\.\d+)?)?(\s*[AaPp][Mm])?)?$"
)
ISO = re.compile(r"\d{4}-\d{2}(-\d{2}([T ]\d{2}(:?\d{2}(:?\d{2}([.,]\d+)?)?)?\s*(Z|[+-]\d{2}(:?\d{2})?)?)?)?$")
OFFSET = re.compile(r":\d{2}\S*\s*(?:Z|[+-]\d{2}(?::?\d{2})?)$")
DAY = np.timedelta64(1, "D")
FORMAT = 'Give its form, as date_format="%d.%m.%Y %H:%M"'


def looks_like_times(cells: Sequence[Any]) -> bool:
    """Whether the first cell that holds anything is a date."""
    held = next((str(cell).strip() for cell in cells if cell == cell and str(cell).strip()), "")
    return bool(ISO.match(held) or DATE.match(held))


def moments(pandas: Any, cells: Any, name: str, date_format: str | None, zone: str | None) -> np.ndarray:
    """Gives the moments of a column: ``datetime64``, of UTC where cells say so; or plain numbers.

    Numbers are years where the column is called so, dates as 20240131, seconds since 1970 (from 1e8 on; from 1e11 on
    milliseconds, and so on), or just numbers.

    Raises:
        ValueError: naming the first cell that is no time, or could be two; or if a zone is given for times that need
            none.
    """
    if date_format is None and cells.dtype.kind in "iuf":
        found, days = _of_numbers(pandas, cells, name)
        if zone is not None and not days:
            raise ValueError(
                f"`zone` must be left out: {name!r} holds numbers, as {cells.iloc[0]}; no clock change moves them"
            )
        return found
    texts = cells.astype(str).str.strip()
    held = texts[cells.notna()]
    if date_format is None and held.str.match(ISO).mean() > 0.5:  # others are named below
        offsets = held.str.contains(OFFSET)
        if offsets.nunique() > 1:
            raise ValueError(f"`time` must say the offset from UTC in every cell of {name!r}, or in none")
        found = pandas.to_datetime(held, format="ISO8601", utc=bool(offsets.any()), errors="coerce")
    else:
        form = date_format or _format(held, name)
        try:
            found = pandas.to_datetime(held, format=form, errors="coerce")
        except ValueError as error:  # of the form itself
            raise ValueError(f'`date_format` must be as "%d.%m.%Y %H:%M"; got {form!r} ({error})') from error
    found = found.reindex(cells.index)
    if found.isna().any():
        row = int(found.isna().to_numpy().argmax())
        raise ValueError(
            f"`time` must be a time in each row; row {row + 1} has {texts.iloc[row]!r} in column {name!r}"
            f"{f', where others are as {held.iloc[0]!r}' if len(held) else ''}. Mend or remove the row, or give "
            'the form of all: date_format="..."'
        )
    if getattr(found.dt, "tz", None):
        if zone is not None:
            raise ValueError(f"`zone` must be left out: cells of {name!r} say their offset, as {held.iloc[0]!r}")
        found = found.dt.tz_convert("UTC").dt.tz_localize(None)
    return found.to_numpy("datetime64[us]")


def _of_numbers(pandas: Any, cells: Any, name: str) -> tuple[np.ndarray, bool]:
    """The times that numbers mean, and whether these are days or years."""
    numbers = cells.to_numpy(np.float64)
    if not np.isfinite(numbers).all():
        row = int((~np.isfinite(numbers)).argmax())
        raise ValueError(
            f"`time` must be a time in each row; row {row + 1} has none in column {name!r}. Remove the row"
        )
    whole = (numbers == numbers.round()).all()
    low, high = numbers.min(), numbers.max()
    if whole and low >= 1000 and high < 3000 and re.search("year|jahr|date", name, re.IGNORECASE):
        return numbers.astype(np.int64).astype(str).astype("datetime64[Y]").astype("datetime64[us]"), True
    if whole and low >= 17000101 and high <= 22001231:
        days = pandas.to_datetime(cells.astype("int64").astype(str), format="%Y%m%d", errors="coerce")
        if days.notna().all():
            return days.to_numpy("datetime64[us]"), True
    if low >= 1e8:
        unit = 1e6 if high < 1e11 else 1e3 if high < 1e14 else 1 if high < 1e17 else 1e-3
        return (numbers * unit).round().astype(np.int64).astype("datetime64[us]"), False
    return numbers, False


def _format(held: Any, name: str) -> str:
    """The form of dates, from all cells: which number is the day."""
    parts = held.str.extract(DATE)
    odd = parts[0].isna()
    if not len(held) or odd.mean() > 0.5:
        shown = f" {held[odd].iloc[0]!r}" if len(held) else " nothing"
        raise ValueError(f"`time` must be dates or numbers that are known; column {name!r} has{shown}. {FORMAT}")
    held, parts = held[~odd], parts[~odd]  # others are named where they are read
    first, last, mark = parts[0], parts[3], parts[1].iloc[0]
    if (first.str.len() == 4).all():
        order = "%Y{0}%m{0}%d"
    elif (last.str.len() == 4).all():
        order = _day_or_month(first.astype(int), parts[2].astype(int), held, name, mark)
    else:
        raise ValueError(f"`time` must have years of four digits; column {name!r} has {held.iloc[0]!r}. {FORMAT}")
    colon, seconds, fraction, noon = (parts[i].iloc[0] for i in (5, 6, 7, 8))
    if not isinstance(colon, str):
        return order.format(mark)
    gap = held.iloc[0][parts.iloc[0, :4].str.len().sum() + 1 :]
    gap = gap[: len(gap) - len(gap.lstrip("T ,"))]
    hour = "%I" if isinstance(noon, str) else "%H"
    clock = hour + colon + "%M" + (colon + "%S" if isinstance(seconds, str) else "")
    clock += (".%f" if isinstance(fraction, str) else "") + (noon[:-2] + "%p" if isinstance(noon, str) else "")
    return order.format(mark) + gap + clock


def _day_or_month(first: Any, second: Any, held: Any, name: str, mark: str) -> str:
    late, early = first > 12, second > 12
    if late.any() and early.any():
        raise ValueError(
            f"`time` must have the day at one place; column {name!r} has {held[late].iloc[0]!r} and "
            f"{held[early].iloc[0]!r}. Mend one of them"
        )
    if not (late.any() or early.any() or mark == "."):
        raise ValueError(
            f"`time` must tell days from months; in column {name!r}, as in {held.iloc[0]!r}, either could come first. "
            f'Give date_format="%d{mark}%m{mark}%Y..." or "%m{mark}%d{mark}%Y...", with the hours if there are any'
        )
    return "%m{0}%d{0}%Y" if early.any() else "%d{0}%m{0}%Y"


def places(times: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Gives which step each time is, counted from the first, the times of all steps, and what a step is.

    Times ascend and differ. A step is of months where all times lie at the same place of a month (or at its end), of
    working days where days follow each other and none is of a weekend, else the commonest distance; 1% of it is let
    pass.

    Raises:
        ValueError: naming the first time that lies between two steps, or where most are missing.
    """
    if len(times) < 2:
        raise ValueError(f"`path` must hold at least two times; got {len(times)}")
    counted = _calendar(times) if times.dtype.kind == "M" else None
    if counted is not None:
        return counted
    gaps = np.diff(times).astype(np.float64)
    sizes, counts = np.unique(gaps, return_counts=True)
    step = sizes[counts.argmax()]
    steps = np.round(gaps / step)
    off = (np.abs(gaps / step - steps) > 0.01) | (steps < 1)
    if off.any():
        row = int(off.argmax())
        raise ValueError(
            f"`path` must hold times of one step; most follow each other by {length(times, step)} ({counts.max()} of "
            f"{len(gaps)}), but {shown(times[row + 1])} comes {length(times, gaps[row])} after {shown(times[row])}. "
            "Bring them to one step (pandas: frame.resample(...).mean()), or give "
            'gaps="joined" to take rows as they come'
        )
    at = np.concatenate([[0], steps.cumsum()]).astype(np.int64)
    _check_held(times, at, length(times, step))
    since = np.interp(np.arange(at[-1] + 1), at, (times - times[0]).astype(np.float64))
    since = since.round().astype("timedelta64[us]") if times.dtype.kind == "M" else since
    return at, times[0] + since, length(times, step)


def _check_held(times: np.ndarray, at: np.ndarray, step: str) -> None:
    """Raises where most times are missing, before any array is made of them: one mistyped year is an age of seconds."""
    count = int(at[-1]) + 1
    if count > 2 * len(times):
        row = int(np.diff(at).argmax())
        raise ValueError(
            f"`path` must hold most of its times; of {count}, {step} apart, {count - len(times)} are missing, the most "
            f"between {shown(times[row])} and {shown(times[row + 1])}. Cut it there, or give "
            'gaps="joined" to take rows as they come'
        )


def _calendar(times: np.ndarray) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Steps of months or working days, if times follow each other so."""
    for shift in (0 * DAY, DAY):  # the end of a month is a day before the next one
        months = (times + shift).astype("datetime64[M]")
        place = times + shift - months.astype(times.dtype)
        gaps = np.diff(months.astype(np.int64))
        step = max(1, int(np.gcd.reduce(gaps)))
        if (place == place[0]).all() and (gaps == step).mean() > 0.5:
            at, name = (months - months[0]).astype(np.int64) // step, f"{step} months" if step > 1 else "a month"
            _check_held(times, at, name)
            whole = (months[0] + np.arange(at[-1] + 1) * step).astype(times.dtype) + place[0] - shift
            return at, whole, name
    days = times.astype("datetime64[D]")
    clock, spans = times - days.astype(times.dtype), np.diff(days)
    working = np.is_busday(days).all() and (clock == clock[0]).all() and (spans == DAY).mean() > 0.5
    if working and days[-1] - days[0] > 6 * DAY:
        at = np.busday_count(days[0], days)
        _check_held(times, at, "a working day")
        return at, np.busday_offset(days[0], np.arange(at[-1] + 1)).astype(times.dtype) + clock[0], "a working day"
    return None


def shown(time: Any) -> str:
    """A time as people write it."""
    if not isinstance(time, np.datetime64):
        return f"{time:g}"
    if np.isnat(time):
        return "NaT"
    return str(time.astype("datetime64[us]")).replace("T", " ").removesuffix(".000000").removesuffix(" 00:00:00")


def length(times: np.ndarray, step: float) -> str:
    """How long a step is, in words."""
    if times.dtype.kind != "M":
        return f"{step:g}"
    seconds = float(step) / 1e6
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


def clock_change(time: Any) -> str:
    """What to say of a local time at which clocks may have been changed."""
    if not isinstance(time, np.datetime64):
        return ""
    month, hour = time.astype("datetime64[M]").astype(int) % 12 + 1, time.astype("datetime64[h]").astype(int) % 24
    sunday = time.astype("datetime64[D]").astype(int) % 7 == 3  # day 0 was a Thursday
    if not (sunday and month in (3, 4, 9, 10, 11) and hour <= 3):
        return ""
    return '. It looks as if clocks were changed that night: give the zone that they show, as zone="Europe/Berlin"'
