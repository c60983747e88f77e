"""Texts as people have them: files of several programs, in folders."""

import gzip

import pytest

from pyro_memory.data import text_files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (tmp_path / "inner" / "c.md").write_text("three")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"zero"))
    (tmp_path / "d.csv").write_text("no text")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "e.txt").write_text("hidden")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_names_with_plain_ends_of_lines(folder):
    assert text_files(folder).text == "zero\n\none\ntwo\n\n\nthree"
    assert text_files(folder / "d.csv").text == "no text"
    text = text_files([folder / "inner", str(folder / "b.txt")], valid=0.2, test=0.3, extra="#")
    assert text.text == "three\n\none\ntwo\n"
    assert (text.valid, text.test) == (0.2, 0.3)
    assert "#" in text.vocabulary


def test_other_encodings_are_told_and_read_by_their_name(folder):
    (folder / "b.txt").write_bytes("Genève".encode("latin-1"))
    with pytest.raises(ValueError, match=r'b.txt is not in the `encoding` \'utf-8\': .*encoding="latin-1"'):
        text_files(folder)
    assert text_files(folder / "b.txt", encoding="latin-1").text == "Genève"
    (folder / "b.txt").write_bytes("Geneve".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"`path` must hold text; .*b.txt holds bytes of zero. If it is UTF-16"):
        text_files(folder)
    assert text_files(folder / "b.txt", encoding="utf-16-le").text == "Geneve"


def test_empty_and_missing_files_are_named(folder):
    (folder / "b.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"`path` must hold text; .*b.txt is empty. Leave it out"):
        text_files(folder)
    with pytest.raises(FileNotFoundError, match=r"`path` must be a text file, or a folder .*; found none at .*none"):
        text_files([folder / "inner", folder / "none"])
    for strange in ([], 3, [3], "", b"bytes"):
        with pytest.raises(TypeError, match=r"`path` must be a file or a folder, or a list of them; got "):
            text_files(strange)
