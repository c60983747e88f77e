import os
import subprocess
import sys

import pytest

from pyro_memory.stores import probe_file, replace_file
from pyro_memory.stores.files import HOST


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


def test_a_file_has_the_mode_that_the_umask_gives_whatever_wrote_it(tmp_path, umask):
    def strict(temporary):
        os.unlink(temporary)
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))

    for write in (lambda temporary: temporary.write_text("x"), strict):
        replace_file(tmp_path / "a", write)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = f".run.json.{ended.pid}-{HOST}abcd.tmp"
    others = {
        f".run.json.{os.getpid()}-{HOST}abcd.tmp",  # is being written
        f".run2.json.{ended.pid}-{HOST}abcd.tmp",
        f".runxjson.{ended.pid}-{HOST}abcd.tmp",
        f".run.json.{ended.pid}-{HOST}abcd.tmp.bak",
        f".run.json.{ended.pid}-mine.tmp",
        f".run.json.{ended.pid}-{int(HOST, 16) ^ 1:04x}abcd.tmp",  # of a process of another machine
        ".run.json.tmp",
    }
    for name in {left} | others:
        (tmp_path / name).touch()
    replace_file(tmp_path / "run.json", lambda temporary: temporary.write_text("{}"))
    assert {path.name for path in tmp_path.iterdir()} == others | {"run.json"}


def test_a_probe_clears_what_killed_processes_left_of_a_file_and_of_those_named_after_it(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other = f".runs.{ended.pid}-{HOST}abcd.tmp"
    for name in (f".run.{ended.pid}-{HOST}abcd.tmp", f".run.json.{ended.pid}-{HOST}abcd.tmp", other):
        (tmp_path / name).touch()
    probe_file(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == [other]


def test_a_probe_leaves_nothing_and_fails_as_a_write_would(tmp_path):
    probe_file(tmp_path / "new" / "a")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a", tmp_path / ("x" * 240)):
        with pytest.raises(OSError, match=r"File exists|Not a directory|too long"):
            probe_file(path)
        with pytest.raises(OSError, match=r"Not a directory|too long"):
            replace_file(path, lambda temporary: temporary.touch())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
