"""Rows of a table brought into the order of even time."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_memory.data.sequences.stamps import clock_change, places, shown


def in_order(
    pandas: Any, values: Any, times: np.ndarray, zone: str | None, gaps: str
) -> tuple[Any, np.ndarray, list[str]]:
    """Gives rows in the order of time, each time once, those that are missing filled in; and what is to be told.

    Raises:
        ValueError: naming the first time that occurs with different numbers, or does not fit the step or the zone.
    """
    told = []
    if (times[1:] < times[:-1]).sum() > len(times) // 2:
        values, times = values[::-1], times[::-1]  # the newest first, as many tables are: nothing to tell
    if zone is not None and times.dtype.kind == "M":
        times = _without_clock_changes(pandas, times, zone)
    late = times[1:] < times[:-1]
    if late.any():
        row = int(late.argmax())
        told.append(
            f"rows are not in the order of time, the first at {shown(times[row + 1])}, after {shown(times[row])}; "
            "they are sorted"
        )
        order = times.argsort(kind="stable")
        values, times = values.iloc[order], times[order]
    values, times = _once(values, times, told, hints=zone is None)
    if gaps == "joined":
        return values.reset_index(drop=True), times, told
    at, whole, step = places(times)
    count = len(whole)
    if count > len(times):
        lacking = np.setdiff1d(np.arange(count), at)
        hint = clock_change(whole[lacking[0]]) if zone is None else ""
        told.append(
            f"{len(lacking)} of {count} times, {step} apart, are missing, the first is {shown(whole[lacking[0]])}; "
            f"they are filled in as not observed{hint}"
        )
        values, times = values.set_axis(at).reindex(range(count)), whole
    return values.reset_index(drop=True), times, told


def _once(values: Any, times: np.ndarray, told: list[str], *, hints: bool) -> tuple[Any, np.ndarray]:
    """Rows without those that repeat another; with a hint where clocks may have been changed."""
    same = np.zeros(len(times), bool)
    same[1:] = times[1:] == times[:-1]
    if not same.any():
        return values, times
    numbers = values.to_numpy()
    differ = same.copy()
    differ[1:] &= ((numbers[1:] != numbers[:-1]) & ~(np.isnan(numbers[1:]) & np.isnan(numbers[:-1]))).any(1)
    if differ.any():
        row = int(differ.argmax())
        raise ValueError(
            f"`path` must hold each time once; {shown(times[row])} occurs with different numbers ({differ.sum()} such "
            f"rows). Keep one of each, or their mean{clock_change(times[row])}"
        )
    hint = next(filter(None, map(clock_change, times[same])), "") if hints else ""
    told.append(
        f"{same.sum()} rows repeat the one before, the first at {shown(times[same][0])}; they are left out{hint}"
    )
    return values[~same], times[~same]


def _without_clock_changes(pandas: Any, times: np.ndarray, zone: str) -> np.ndarray:
    """Local times as UTC; of the hour that occurs twice, summer time is what comes before its first step back."""
    if len(times) > 1 and np.median(np.diff(times).astype(np.float64)) >= 86400e6:
        return times  # days are days, of 23 hours too
    index = pandas.DatetimeIndex(times)
    try:
        twice = index.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").isna()
        local = index.tz_localize(zone, ambiguous=_of_summer(times, twice), nonexistent="NaT")
    except (KeyError, ValueError, OSError) as error:  # as zoneinfo says it
        raise ValueError(
            f'`zone` must be the name of a time zone, as "Europe/Berlin"; got {zone!r} ({error})'
        ) from error
    if local.isna().any():
        raise ValueError(
            f"`zone` must be whose clock the times show; {shown(times[int(local.isna().argmax())])} does not occur in "
            f"{zone}. Leave it out if the file keeps one time throughout, as UTC or that of winter"
        )
    return local.tz_convert("UTC").tz_localize(None).to_numpy("datetime64[us]")


def _of_summer(times: np.ndarray, twice: np.ndarray) -> np.ndarray:
    """Which rows are of summer time, of those whose clock shows their time twice."""
    summer = np.ones(len(times), bool)
    days = times.astype("datetime64[D]")
    for day in np.unique(days[twice]):
        rows = np.flatnonzero(twice & (days == day))
        steps = np.diff(times[rows]).astype(np.int64)
        back = steps < 0 if (steps < 0).any() else steps == 0  # hourly times do not step back, they stand
        summer[rows[1:]] = ~np.logical_or.accumulate(back)
    return summer
