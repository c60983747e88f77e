"""What a run keeps when something goes wrong: the place, the disk, a batch, a measurement."""

import json
import os
import resource
import shutil
import warnings

import pytest
import torch
from fits import Plain, assert_same, pair, run, weights

from pyro_memory.training import read_header, save_checkpoint


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("place", ["folder", "file/a.safetensors", "x" * 240, "/proc/none/a.safetensors"])
def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    wanted = r"`checkpoint` must be a file; got the folder .*Give .*run\.safetensors"
    if place != "folder":
        wanted = r"`checkpoint` must be a file that can be written; .* cannot \(.*Give one in a folder of yours"
    with pytest.raises(ValueError, match=wanted):
        run(*pair(), checkpoint=tmp_path / place, batches=lambda step: pytest.fail("began"))
    assert files(tmp_path) == ["file", "folder"]


@pytest.fixture
def full_disk():
    """Files may not grow over 1,000 bytes while it is called with True."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if full else old[0], old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_fills_up_costs_the_later_files_and_not_the_run(tmp_path, full_disk):
    path = tmp_path / "a.safetensors"

    def evaluate(step):
        full_disk(step >= 8)
        return {}

    try:
        expected = rf"Step 12 could not be kept \(.*File too large.*The last good checkpoint is {path} \(step 6\)"
        with pytest.warns(UserWarning, match=expected):
            result = run(*pair(), checkpoint=path, checkpoint_every=6, steps=12, evaluate=evaluate, evaluate_every=1)
    finally:
        full_disk(False)
    assert (result.steps, result.checkpoint, read_header(path)["step"]) == (12, path, 6)
    assert len(result.history["evaluation"]) == 12
    assert files(tmp_path) == ["a.safetensors", "a.safetensors.json"]


@pytest.mark.parametrize("back", [True, False])
def test_a_folder_that_is_removed_comes_back_or_is_told(tmp_path, back):
    folder = tmp_path / "runs"

    def evaluate(step):
        if step == 8:
            shutil.rmtree(folder)
            back or folder.touch()
        return {}

    options = {"checkpoint": folder / "a", "checkpoint_every": 6, "evaluate": evaluate, "evaluate_every": 1}
    if back:
        assert run(*pair(), steps=12, **options).checkpoint == folder / "a"
        assert read_header(folder / "a")["step"] == 12
    else:
        with pytest.warns(UserWarning, match=r"Step 12 could not be kept .*checkpoint is none: .*runs/a is gone"):
            assert run(*pair(), steps=12, **options).checkpoint is None


class Broken(Plain):
    """Draws, then fails once."""

    broken = True

    def __getitem__(self, step):
        (x,) = super().__getitem__(step)
        x = x + torch.rand(())
        if step == 7 and self.broken:
            raise KeyError("image 12")
        return (x,)


class Mended(Broken):
    broken = False


def test_a_batch_that_raises_leaves_a_checkpoint_that_goes_on_exactly(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyError, match="image 12") as caught:
        run(*pair(), batches=Broken(), checkpoint=path)
    (note,) = caught.value.__notes__
    assert (
        note
        == f"`fit` had taken 7 steps. The last good checkpoint is {path} (step 7); the same call goes on from there"
    )
    parts, whole = pair(seed=3), pair()
    result = run(*parts, batches=Mended(), checkpoint=path)
    expected = run(*whole, batches=Mended())
    assert_same(weights(*parts), weights(*whole))
    assert result.history == expected.history


@pytest.mark.parametrize("where", ["evaluate", "schedule", "model"])
def test_whatever_raises_the_state_before_it_is_kept(tmp_path, where):
    path = tmp_path / "a.safetensors"
    model, guide = pair()
    calls = []

    def fail(step):
        calls.append(step)
        if len(calls) == 5:
            raise RuntimeError("mine")
        return {"score": 1.0} if where == "evaluate" else 1.0

    options = {where: fail} if where != "model" else {}
    if where == "model":
        forward = model.forward
        model.forward = lambda x: (fail(0), forward(x))[1]
    if where == "evaluate":
        options["evaluate_every"] = 1
    with pytest.raises(RuntimeError, match="mine") as caught:
        run(model, guide, checkpoint=path, **options)
    step = {"evaluate": 5, "schedule": 4, "model": 3}[where]  # one pass of the model comes before the first step
    assert f"{path} (step {step})" in caught.value.__notes__[0]
    header = read_header(path)
    assert header["step"] == step
    assert len(header["record"]["log"]["pending"]) == step


def test_without_a_checkpoint_the_note_says_so_and_a_first_step_writes_nothing(tmp_path):
    with pytest.raises(KeyError) as caught:
        run(*pair(), batches=Broken())
    assert "none: this run wrote none" in caught.value.__notes__[0]
    path = tmp_path / "a.safetensors"
    run(*pair(), steps=2, checkpoint=path)
    old = path.read_bytes()
    with pytest.raises(ZeroDivisionError) as caught:
        run(*pair(), checkpoint=path, resume=False, schedule=lambda step: 1 / 0)
    assert path.read_bytes() == old
    assert not hasattr(caught.value, "__notes__")


def test_parameters_that_a_step_left_half_moved_are_not_kept(tmp_path):
    class Half(torch.optim.SGD):
        count = 0

        def step(self):
            super().step()
            Half.count += 1
            if Half.count == 5:
                raise RuntimeError("half")

    path = tmp_path / "a.safetensors"
    with pytest.raises(RuntimeError, match="half"):
        run(*pair(), checkpoint=path, checkpoint_every=3, optimizer=Half)
    assert read_header(path)["step"] == 3


@pytest.mark.parametrize("theirs", ["notes: mine\n", '{"mine": 1}', "[1]"])
def test_a_file_of_the_users_beside_a_checkpoint_stays_and_is_told_once(tmp_path, theirs):
    beside = tmp_path / "run.safetensors.json"
    beside.write_text(theirs)
    with pytest.warns(UserWarning, match=r"json` is not a summary of this package's, so it stays") as record:
        run(*pair(), checkpoint=tmp_path / "run.safetensors", checkpoint_every=2)
    assert len(record) == 1
    assert beside.read_text() == theirs


def test_no_two_files_of_runs_share_a_name_and_none_is_overwritten(tmp_path):
    (tmp_path / "run.json").write_text("mine")
    for name in ("lr0.1", "lr0.2", "run.safetensors", "own.json"):
        run(*pair(), steps=2, checkpoint=tmp_path / name)
        assert read_header(tmp_path / name)["step"] == 2
        assert json.loads((tmp_path / f"{name}.json").read_text())["step"] == 2
    assert (tmp_path / "run.json").read_text() == "mine"
    with pytest.warns(UserWarning, match="not a summary"):
        save_checkpoint(tmp_path / "own", *pair())  # whose summary would lie over another checkpoint
    assert read_header(tmp_path / "own.json")["step"] == 2


def test_a_checkpoint_may_be_read_by_whom_the_umask_lets(tmp_path):
    old = os.umask(0o022)
    try:
        run(*pair(), steps=1, checkpoint=tmp_path / "a")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_a_summary_that_cannot_be_written_costs_no_checkpoint(tmp_path):
    (tmp_path / "a.json").mkdir()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(*pair(), steps=4, checkpoint=tmp_path / "a", checkpoint_every=2)
    assert len(told) == 1
    assert read_header(tmp_path / "a")["step"] == 4
