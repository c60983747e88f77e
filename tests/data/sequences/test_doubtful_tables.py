"""Tables and frames that could be meant in two ways: what is refused, and what is told."""

import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_memory.data import Series, series_csv

DAYS = [f"2024-01-{day:02d}" for day in range(1, 21)]


@pytest.fixture
def read(tmp_path):
    """Writes lines of times and cells, and reads them."""

    def made(head, times, rows, mark=";", **options):
        lines = [head, *(f"{time}{mark}{row}" for time, row in zip(times, rows, strict=True))]
        (tmp_path / "table.csv").write_text("\n".join(lines))
        return series_csv(tmp_path / "table.csv", **options)

    return made


@pytest.mark.parametrize("mark", [",", "."])
def test_marks_that_may_be_of_thousands_need_a_word(read, mark):
    rows = [cell.replace(",", mark) for cell in ["999", "1,234", "-12,345", "950"] * 5]
    other = {",": ".", ".": ","}[mark]
    message = rf"`decimal` must be given: in .*, '1{mark}234' of column 'n' may have three decimals, or a mark of thous"
    with pytest.raises(ValueError, match=message):
        read("day;n", DAYS, rows)
    assert read("day;n", DAYS, rows, decimal=mark).raw[:3, 0].tolist() == [999, 1.234, -12.345]
    with pytest.raises(ValueError, match=rf"column 'n' has '1{mark}234' in row 2. Mend it \(marks of thousands"):
        read("day;n", DAYS, rows, decimal=other)
    with pytest.raises(ValueError, match=message):  # all cells alike say as little
        read("day;n", DAYS, [f"1{mark}234"] * 20)
    with pytest.raises(
        ValueError, match=message
    ):  # another column tells of itself only, where whole numbers are mixed in
        read("day;n;t", DAYS, [f"{row};20{mark}5" for row in rows])


@pytest.mark.parametrize(
    ("rows", "second"),
    [
        ([f"{i},234" for i in range(20)], 1.234),  # 0,234 has decimals
        (["999", "1,234", "2,5", "3"] * 5, 1.234),
        (["1999", "1,234"] * 10, 1.234),  # who marks thousands would mark 1999
        (["1,234;2,5"] * 20, 1.234),
        (["1,234e1", "1,234"] * 10, 1.234),
    ],
)
def test_decimals_that_can_be_nothing_else_need_none(read, rows, second):
    head = "day;n;t" if ";" in rows[0] else "day;n"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="channel .* is constant")
        assert read(head, DAYS, rows).raw[1, 0] == second


def test_decimal_points_between_commas_are_decimals(read):
    assert read("day,n", DAYS, [f"{i + 1}.125" for i in range(20)], mark=",").raw[1, 0] == 2.125


def test_where_no_times_are_found_it_is_told(read):
    backwards = pd.date_range("2024-01-10", periods=20, freq="h")[::-1]
    times, rows = backwards.strftime("%d %b %Y %H:%M"), [str(i) for i in range(20)]
    message = (
        r"no column of times was found, rows .* follow each other; left out: 'Recorded' \('10 Jan 2024 19:00'\). Give"
    )
    with pytest.warns(UserWarning, match=message):
        assert read("Recorded,x", times, rows, ",").times is None
    told = read("Recorded,x", times, rows, ",", time="Recorded", date_format="%d %b %Y %H:%M")
    assert told.raw[:, 0].tolist() == list(range(20))[::-1]
    with pytest.warns(
        UserWarning, match=r"no column of times was found, rows .* each other. Give `time`, .* time=\[\] if"
    ):
        read("unix,x", range(20), rows, ",")
    assert read("unix,x", range(20), rows, ",", time=[]).channels == ("unix", "x")


def test_columns_of_text_that_hold_numbers_are_told(read):
    rows = [f"{i} kWh;{'offline' if i % 4 else '3.0'};Ulm;2023-01-01;{i}" for i in range(20)]
    message = (
        r"text that hold numbers are left out: 'use' \('0 kWh'\), 'flow' \('3.0'\). Mend them \(units are not read\)"
    )
    with pytest.warns(UserWarning, match=message):
        assert read("day;use;flow;place;since;x", DAYS, rows).channels == ("x",)
    assert read("day;use;flow;place;since;x", DAYS, rows, columns=["x"]).channels == ("x",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda t: t.isoformat(), r"cells of 'time' say their offset, as '2024-10-26T00:00:00\+02:00'"),
        (lambda t: f"{t.tz_convert('UTC'):%Y-%m-%dT%H}Z", r"cells of 'time' say their offset, as '2024-10-25T22Z'"),
        (lambda t: int(t.timestamp()), r"'time' holds numbers, as 1729893600; no clock change moves them"),
        (lambda t: t.day_of_year + t.hour / 24, r"'time' holds numbers, as 300.0; no clock change"),
    ],
)
def test_a_zone_is_refused_for_times_that_need_none(read, write, message):
    times = [write(t) for t in pd.date_range("2024-10-26", periods=20, freq="h", tz="Europe/Berlin")]
    with pytest.raises(ValueError, match=r"`zone` must be left out: " + message):
        read("time,x", times, range(20), ",", zone="Europe/Berlin")
    assert len(read("time,x", times, range(20), ",").raw) == 20
    years = read("year,x", range(2000, 2020), range(20), ",", zone="Europe/Berlin")
    assert years.times[1] == np.datetime64("2001-01-01")


@pytest.mark.parametrize("lacking", [[], [4], [5], [6], [7], [4, 7], [4, 6]])
def test_the_hour_that_occurs_twice_is_told_apart_with_rows_missing(read, lacking):
    times = pd.date_range("2024-10-27", periods=24, freq="30min", tz="Europe/Berlin")  # rows 4 to 7 are of that hour
    kept = [i for i in range(24) if i not in lacking]
    written = [f"{times[i]:%Y-%m-%d %H:%M}" for i in kept]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        series = read("time,x", written, kept, ",", zone="Europe/Berlin")
    assert (series.times == times.tz_convert("UTC").tz_localize(None).values).all()
    assert series.observed[:, 0].tolist() == [i in kept for i in range(24)]
    assert series.raw[kept, 0].tolist() == kept
    assert not any("order" in str(warning.message) for warning in told)


def test_a_repeat_of_equal_numbers_hints_at_changed_clocks(read):
    times = pd.date_range("2024-10-26", periods=60, freq="h", tz="Europe/Berlin")
    rows = [1 if 20 < i < 30 else i for i in range(60)]
    written = [f"{t:%Y-%m-%d %H:%M}" for t in times]
    with pytest.warns(UserWarning, match=r"1 rows repeat .* at 2024-10-27 02:00:00; .* clocks were changed .*zone="):
        read("time,x", written, rows, ",")
    with pytest.warns(UserWarning, match=r"1 rows repeat .* at 2024-10-27 02:00:00; they are left out$"):
        read("time,x", [*written[:29], *written[28:]], [*rows[:29], *rows[28:]], ",", zone="Europe/Berlin")


@pytest.mark.parametrize(
    ("step", "wrong"),
    [("s", "2204-01-01"), ("MS", "9999-01-01"), ("B", "2204-01-02")],
)
def test_a_mistyped_year_is_named_before_memory_is_taken(read, step, wrong):
    times = pd.date_range("2024-01-01", periods=50, freq=step).strftime("%Y-%m-%d %H:%M:%S").tolist()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"`path` must hold most of its times; .* and {wrong}. Cut it there"):
            read("time,x", [*times, f"{wrong} 00:00:00"], range(51), ",")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("head", "channel"), [("time,Temp; C", "Temp; C"), ("time,Temp (in; out)", "Temp (in; out)")])
def test_a_title_with_another_separator_is_a_title(read, head, channel):
    assert read(head, DAYS, range(20), ",").channels == (channel,)
    swapped = read(head.translate(str.maketrans(",;", ";,")), DAYS, [f"{i},5" for i in range(20)])
    assert swapped.channels == (channel.replace(";", ","),)
    assert swapped.raw[3, 0] == 3.5


def test_a_frame_must_ascend_in_time():
    hours = pd.date_range("2024-01-10", periods=20, freq="h")
    frame = pd.DataFrame({"x": np.arange(20.0)}, index=hours[::-1])
    message = (
        r"`times` must ascend, .*; 2024-01-10 18:00:00 follows 2024-01-10 19:00:00 in row 1. Sort .*sort_index\(\)"
    )
    with pytest.raises(ValueError, match=message):
        Series(frame)
    assert Series(frame.sort_index()).raw[0] == 19
    with pytest.raises(ValueError, match=r"must ascend, each once .*; 2024-01-10 follows 2024-01-10 in row 1"):
        Series(frame.set_axis(hours[[0, *range(19)]]))
    with pytest.raises(ValueError, match=r"must ascend, .*; NaT follows 2024-01-10 02:00:00 in row 3"):
        Series(frame.set_axis([*hours[:3], pd.NaT, *hours[4:]]))
    with pytest.raises(ValueError, match=r"must ascend, .*; 1 follows 2 in row 2"):
        Series(torch.arange(3.0), ends=(2, 3, 3), times=[1, 2, 1])


def test_a_frame_with_gaps_is_taken_row_by_row_and_told():
    hours = pd.date_range("2024-01-10", periods=20, freq="h")
    frame = pd.DataFrame({"x": np.arange(20.0)}, index=hours)
    with pytest.warns(
        UserWarning, match=r"`raw` lacks 3 of 20 times, 1 h apart, the first is 2024-01-10 05:00:00. Rows"
    ):
        gapped = Series(frame.drop(hours[5:8]))
    assert len(gapped.raw) == 17
    with pytest.warns(
        UserWarning, match=r"`raw` has an index of times that are not of one step. Rows are taken as they"
    ):
        Series(frame.set_axis(hours[:-1].append(hours[-1:] + pd.Timedelta("20min"))))
    months = frame.set_axis(pd.date_range("2020-01-31", periods=20, freq="ME"))
    assert len(Series(months).raw) == len(Series(frame.drop(hours[5:8]).reset_index(drop=True)).raw) + 3


def test_a_table_without_titles_is_refused_though_a_row_has_words(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(f"{day};1,5;Ulm" for day in DAYS))
    with pytest.raises(
        ValueError, match=r"`path` must begin with a line of titles; .* begins with '2024-01-01;1,5;Ulm'"
    ):
        series_csv(path)


def test_the_cell_that_is_no_number_is_named_whatever_the_decimal_mark(read):
    rows = [f"{day},5" for day in range(1, 21)]
    with pytest.raises(ValueError, match="column 'n' has '3,2 kWh' in row 9"):
        read("day;n", DAYS, [*rows[:8], "3,2 kWh", *rows[9:]])


def test_windows_longer_than_the_part_are_refused():
    with pytest.raises(ValueError, match=r"`past` \+ `horizon` must fit into the train part.*; got 96 \+ 24"):
        Series(torch.randn(20, 1)).windows("train", past=96, horizon=24, batch=2)
