"""Tables as people have them: written by other programs, in other countries, with gaps."""

import gzip
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_memory.data import Series, series_csv

HOURS = pd.date_range("2024-03-05", periods=60, freq="h")
MONTH = pd.date_range("2024-01-01", periods=31)


@pytest.fixture
def read(tmp_path):
    """Writes a table and reads it."""

    def made(content, **options):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return series_csv(path, **options)

    return made


def table(times, head="date,a", rows=None, end="\n"):
    """Lines of times and numbers: 0, 1, 4, ..."""
    rows = [f"{i**2}" for i in range(len(times))] if rows is None else rows
    return end.join([head, *(f"{time},{row}" for time, row in zip(times, rows, strict=True)), ""])


def stamps(times, form="%Y-%m-%d %H:%M"):
    return pd.DatetimeIndex(times).strftime(form).tolist()


SQUARES = [float(i**2) for i in range(31)]


def test_a_table_of_a_german_program_is_read_like_a_plain_one(read):
    lines = ["Datum;Wärme (kWh);Ort;Preis;", *(f"{t:%d.%m.%Y %H:%M};{i},5;Ulm;{i % 3};" for i, t in enumerate(HOURS))]
    german = read("\ufeff" + "\r\n".join([*lines, ";;;;", ""]))
    plain = read("\n".join(["time,Wärme (kWh),Preis", *(f"{t},{i}.5,{i % 3}" for i, t in enumerate(HOURS))]))
    assert german.channels == plain.channels == ("Wärme (kWh)", "Preis")
    assert torch.equal(german.raw, plain.raw)
    assert german.raw[:, 0].tolist() == [i + 0.5 for i in range(60)]
    assert (german.times == plain.times).all()
    assert (german.times == HOURS.values).all()
    assert german.ends == (42, 48, 60)
    assert german.observed.all()


@pytest.mark.parametrize(
    ("write", "head"),
    [
        (lambda t: f"{t:%Y-%m-%d}", "day"),
        (lambda t: f"{t:%Y/%m/%d}", "day"),
        (lambda t: f"{t:%d.%m.%Y}", "when"),
        (lambda t: f"{t:%d/%m/%Y}", "Date"),
        (lambda t: f"{t:%m/%d/%Y}", "Date"),
        (lambda t: f"{t.month}/{t.day}/{t.year} 12:00 AM", "Date"),
        (lambda t: f"{t:%d.%m.%Y %H:%M:%S}", "Zeitpunkt"),
        (lambda t: f"{t:%Y-%m-%dT%H:%M:%S}Z", "stamp"),
        (lambda t: f"{t:%Y-%m-%d %H:%M}+00:00", "stamp"),
        (lambda t: f"{t:%Y%m%d}", "date"),
        (lambda t: f"{int(t.timestamp())}", "timestamp"),
        (lambda t: f"{int(t.timestamp()) * 1000}", "Timestamp"),
        (lambda t: f'"{t:%Y-%m-%d}"', "a, b"),
    ],
)
def test_dates_are_found_in_whatever_form(read, write, head):
    series = read(table(list(map(write, MONTH)), f'"{head}",n'))
    assert (series.times == MONTH.values).all()
    assert series.raw[:, 0].tolist() == SQUARES


@pytest.mark.parametrize(
    ("times", "written"),
    [
        (pd.date_range("2015-01-01", periods=24, freq="MS"), "%Y-%m"),
        (pd.date_range("2015-01-31", periods=24, freq="ME"), "%Y-%m-%d"),
        (pd.date_range("2015-01-01", periods=24, freq="QS"), "%Y-%m-%d"),
        (pd.date_range("1990-01-01", periods=24, freq="YS"), "%Y"),
        (pd.bdate_range("2015-01-01", periods=24), "%Y-%m-%d"),
        (pd.date_range("2015-01-01", periods=24, freq="W"), "%Y-%m-%d"),
        (pd.date_range("2015-01-01", periods=24, freq="15min"), "%Y-%m-%d %H:%M"),
    ],
)
def test_months_years_and_working_days_are_even_and_their_gaps_are_filled(read, times, written):
    texts = stamps(times, written)
    assert read(table(texts, "year,n")).observed.all()
    gapped = table(texts[:7] + texts[9:], "year,n")
    with pytest.warns(UserWarning, match=rf"2 of 24 times, .* apart, are missing, the first is {texts[7]}.*; they are"):
        series = read(gapped)
    assert (series.times == times.values).all()
    assert series.observed[:, 0].tolist() == [i not in (7, 8) for i in range(24)]
    assert series.raw[6:10, 0].tolist() == [36, 36, 36, 49]


def test_missing_times_may_be_joined(read):
    texts = stamps(HOURS[:10]) + stamps(HOURS[20:24])
    with pytest.warns(UserWarning, match=r"10 of 24 times, 1 h apart, are missing, the first is 2024-03-05 10:00:00"):
        assert len(read(table(texts)).raw) == 24
    series = read(table(texts), gaps="joined")
    assert series.observed.all()
    assert (series.times == HOURS[[*range(10), *range(20, 24)]].values).all()


def test_empty_cells_are_not_observed_and_filled_with_the_last_number(read):
    rows = ["1,5", ",", "3,NA", "-,6", "n/a,8", "2,9"]
    with pytest.warns(UserWarning, match=r"5 cells are empty, the first in column 'a' at 2024-01-02; they are not"):
        series = read(table(stamps(MONTH[:6], "%Y-%m-%d"), "date,a,b", rows), split=(1, 0, 0))
    assert series.raw.T.tolist() == [[1, 1, 3, 3, 3, 2], [5, 5, 5, 6, 8, 9]]
    assert series.observed.T.int().tolist() == [[1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 1, 1]]
    torch.testing.assert_close(series.values[2, 0], torch.tensor(1.0 / (2 / 3) ** 0.5))  # of 1, 3 and 2
    with pytest.warns(UserWarning, match=r"1 cells are empty, the first in column 'b' at row 3"):
        read("a,b\n1,2\n2,3\n3,\n5,5\n", time=[])


def test_repeated_rows_are_left_out_and_contradictions_named(read):
    texts = stamps(MONTH, "%Y-%m-%d")
    rows = [str(i**2) for i in range(31)]
    with pytest.warns(UserWarning, match=r"1 rows repeat the one before, the first at 2024-01-05; they are left out"):
        series = read(table([*texts[:5], *texts[4:]], rows=[*rows[:5], *rows[4:]]))
    assert series.raw[:, 0].tolist() == SQUARES
    with pytest.raises(ValueError, match=r"each time once; 2024-01-05 occurs with different numbers \(1 such rows\)"):
        read(table([*texts[:5], *texts[4:]], rows=[*rows[:5], "9", *rows[5:]]))


def test_rows_are_brought_into_order(read):
    texts, rows = stamps(MONTH, "%Y-%m-%d"), [str(i**2) for i in range(31)]
    assert read(table(texts[::-1], rows=rows[::-1])).raw[:, 0].tolist() == SQUARES
    swapped = [*texts[:3], texts[4], texts[3], *texts[5:]], [*rows[:3], rows[4], rows[3], *rows[5:]]
    with pytest.warns(UserWarning, match=r"not in the order of time, the first at 2024-01-04, after 2024-01-05; they"):
        assert read(table(*swapped[:1], rows=swapped[1])).raw[:, 0].tolist() == SQUARES


def local(first, last, step):
    return stamps(pd.date_range(first, last, freq=step, tz="Europe/Berlin"))


@pytest.mark.parametrize("step", ["h", "15min"])
def test_changed_clocks_are_told_and_made_even_by_the_zone(read, step):
    autumn, spring = local("2024-10-26", "2024-10-28", step), local("2024-03-30", "2024-04-01", step)
    with pytest.raises(ValueError, match=r"2024-10-27 02:00:00 occurs .* clocks were changed .*zone=\"Europe/Berlin\""):
        read(table(autumn))
    with pytest.warns(UserWarning, match=r"first is 2024-03-31 02:00:00; .* clocks .*zone=\"Europe/Berlin\""):
        read(table(spring))
    for texts, start in ((autumn, "2024-10-25T22:00"), (spring, "2024-03-29T23:00")):
        series = read(table(texts), zone="Europe/Berlin")
        assert len(series.raw) == len(texts)
        assert series.observed.all()
        assert series.times[0] == np.datetime64(start)
        assert len(set(np.diff(series.times))) == 1
        backwards = read(table(texts[::-1], rows=[f"{i**2}" for i in range(len(texts))][::-1]), zone="Europe/Berlin")
        assert torch.equal(series.raw, backwards.raw)
    days = stamps(pd.date_range("2024-10-20", "2024-11-05"), "%Y-%m-%d")
    assert read(table(days), zone="Europe/Berlin").observed.all()
    offsets = [t.isoformat() for t in pd.date_range("2024-10-26", "2024-10-28", freq=step, tz="Europe/Berlin")]
    assert len(read(table(offsets)).raw) == len(autumn)


def test_a_zone_that_is_not_of_these_times_is_told(read):
    utc = stamps(pd.date_range("2024-03-30", "2024-04-01", freq="h"))
    with pytest.raises(ValueError, match=r"2024-03-31 02:00:00 does not occur in Europe/Berlin. Leave it out if"):
        read(table(utc), zone="Europe/Berlin")
    with pytest.raises(ValueError, match=r"`zone` must be the name of a time zone, .*; got 'Berlin'"):
        read(table(utc), zone="Berlin")


def test_date_and_time_may_be_two_columns_and_time_may_be_missing(read):
    later = HOURS + pd.Timedelta(days=20)  # whose days are no months
    lines = ["Date;Time;CO;T", *(f"{t:%d/%m/%Y};{t:%H.%M.%S};{i},5;{i % 3}" for i, t in enumerate(later))]
    for options in ({}, {"time": ["Date", "Time"], "date_format": "%d/%m/%Y %H.%M.%S"}):
        series = read("\n".join(lines), **options)
        assert (series.times == later.values).all()
        assert series.channels == ("CO", "T")
    bare = read("a\tb\n" + "\n".join(f"{i}\t{i % 4}" for i in range(20)), time=[])
    assert bare.times is None
    assert bare.raw[:, 1].tolist() == [i % 4 for i in range(20)]
    assert read("t,b\n" + "\n".join(f"{i / 10},{i % 4}" for i in range(20)), time="t").channels == ("b",)


def test_columns_are_chosen_and_constant_ones_kept(read):
    rows = [f"Ulm,{i**2},7" for i in range(31)]
    content = table(stamps(MONTH, "%Y-%m-%d"), "date,place,a,b", rows)
    assert read(content, columns=["a"]).channels == ("a",)
    with pytest.warns(UserWarning, match="channel 'b' is constant"):
        series = read(content, columns=("b", "a"))
    assert series.channels == ("b", "a")
    assert (series.values[:, 0] == 0).all()
    frame = pd.read_csv(pd.io.common.StringIO(content), index_col="date", parse_dates=True)
    assert torch.equal(Series(frame[["a"]]).raw, series.raw[:, 1:])


def test_files_are_read_compressed_in_utf_16_and_in_other_encodings(read):
    content = table(stamps(MONTH, "%Y-%m-%d"), "date,Wärme")
    for written in (gzip.compress(content.encode()), content.encode("utf-16"), content.replace("\n", "\r").encode()):
        assert read(written).channels == ("Wärme",)
    with pytest.raises(ValueError, match=r"not in the `encoding` 'utf-8': .* at byte 6. .*encoding=\"cp1252\""):
        read(content.encode("cp1252"))
    assert read(content.encode("cp1252"), encoding="cp1252").channels == ("Wärme",)


AMBIGUOUS = table(stamps(MONTH[:9], "%d/%m/%Y"))
MIXED = "a;b\n1,5;2.5\n2,5;3.5\n"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (AMBIGUOUS, {}, r"tell days from months; in column 'date', as in '01/01/2024', .*date_format=\"%d/%m/%Y"),
        (table(["13/01/2024", "01/14/2024"]), {}, r"the day at one place; .* '13/01/2024' and '01/14/2024'"),
        (table(["13.01.24", "14.01.24"]), {}, r"years of four digits; column 'date' has '13.01.24'. Give its form"),
        (table(["Jan 24", "Feb 24"]), {}, r"numbers that are known; column 'date' has 'Jan 24'. Give its form"),
        (table(["2024-01-01", "Total", "2024-01-03"]), {}, r"row 2 has 'Total' .* others are as '2024-01-01'. Mend"),
        (table(["2024-01-01", "2024-13-02", "2024-01-03"]), {}, r"row 2 has '2024-13-02' in column 'date'"),
        (table(["2024-01-01T00:00Z", "2024-01-02T00:00"]), {}, r"offset from UTC in every cell of 'date'"),
        (table([1, "", 3]), {"time": "date"}, r"a time in each row; row 2 has none in column 'date'"),
        (table(["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00", "2024-01-01 02:30"]), {},
         r"one step; most .* by 1 h \(2 of 3\), but 2024-01-01 02:30:00 comes 30 min after .*gaps=\"joined\""),
        (table(["2024-01-01", "2024-01-02", "2025-01-01"]), {}, r"of 367, 1 d apart, 364 are missing, .*"),
        (table(["2024-01-01"]), {}, r"at least two times; got 1"),
        (table(stamps(MONTH), rows=['"1,234"'] * 31), {}, r"has '1,234' in row 1. Mend it \(marks of"),
        (table(stamps(MONTH), rows=[*"1234", "error", *"67890" * 5, "1"]), {}, r"'a' has 'error' in row 5"),
        (table(stamps(MONTH), rows=["x"] * 31), {}, r"`columns` must hold numbers; none of a does"),
        (table(stamps(MONTH), rows=["x"] * 31), {"columns": ["a"]}, r"column 'a' has 'x' in row 1"),
        (table(stamps(MONTH)), {"columns": ["b"]}, r"`columns` must be of a; got 'b'"),
        (table(stamps(MONTH)), {"time": "t"}, r"`time` must be a column, of date, a; got 't'"),
        (table(stamps(MONTH)), {"split": (0.5, 0.5)}, r"`split` must be three shares"),
        (table(stamps(MONTH)), {"split": (0.5, 0.5, 0.5)}, r"`split` must be three shares, .* of at most 1"),
        (table(stamps(MONTH)), {"gaps": "none"}, r'`gaps` must be "filled" or "joined"; got \'none\''),
        (table(stamps(MONTH)), {"decimal": ";"}, r'`decimal` must be "." or ","; got \';\''),
        (table(stamps(MONTH)), {"encoding": "utf-9"}, r"`encoding` must be one that Python knows, .*; got 'utf-9'"),
        (table(stamps(MONTH)), {"date_format": "%d.%m.%Y"}, r"row 1 has '2024-01-01 00:00' in column 'date'"),
        (MIXED.replace(".", ","), {"time": []}, r"`split` must leave two rows to train on, at least; 0.7 of 2 is 1"),
        (table(stamps(MONTH)), {"date_format": "%D"}, r"`date_format` must be as .*; got '%D'"),
        (MIXED, {}, r"`decimal` must be given: .* holds '1,5' and '2.5'"),
        ("2024-01-01,1\n2024-01-02,2\n2024-01-03,2\n", {}, r"a line of titles; .* begins with '2024-01-01,1'"),
        ("a,b\n1,2,3\n4,5,6\n7,8,9\n", {}, r"a title for each column; .* has 2 and rows of 3"),
        ("a,b\n1,2\n4,5,6\n7,8\n", {}, r"is no table: .*Expected 2 fields in line 3, saw 3. Mend that line"),
        ("", {}, r"a line of titles and lines of numbers; .* has 0"),
        (b"PK\x03\x04...", {}, r"`path` must be text; .* is a workbook or an archive. Save the table as csv"),
        (b"a\0b\n1,2\n", {}, r"`path` must be text; .* holds bytes of zero"),
        (b"\x1f\x8bcut", {}, r"is damaged or no gzip"),
    ],
)  # fmt: skip
def test_what_could_be_meant_in_two_ways_or_in_none_is_named(read, content, options, message):
    with pytest.raises(ValueError, match=message):
        read(content, **options)


def test_days_and_months_are_told_by_a_form(read):
    assert read(AMBIGUOUS, date_format="%d/%m/%Y").times[-1] == np.datetime64("2024-01-09")
    assert read(AMBIGUOUS, date_format="%m/%d/%Y").times[-1] == np.datetime64("2024-09-01")
    assert read(MIXED.replace("2.5", "2,5").replace("3.5", "3,5"), time=[], split=(1, 0, 0)).raw.tolist() == [
        [1.5, 2.5],
        [2.5, 3.5],
    ]


def test_a_missing_file_and_a_missing_pandas_are_told(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"`path` must be a file of text .*; there is no .*none.csv"):
        series_csv(tmp_path / "none.csv")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"`series_csv` reads tables by pandas: pip install 'pyro-memory\[tables\]'"):
        series_csv(tmp_path / "none.csv")
