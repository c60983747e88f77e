import json
import signal
import subprocess
import sys

import pytest
from fits import assert_same, pair, run, weights

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from fits import Plain, pair, run

class Slow(Plain):
    def __getitem__(self, step):
        import time
        print(step, flush=True)
        time.sleep(0.02)
        return super().__getitem__(step)

run(*pair(), steps=10_000, batches=Slow(), checkpoint={path!r}, checkpoint_every=10_000)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_leaves_a_checkpoint_that_resumes_to_the_same_weights(tmp_path, request, number, code):
    path = tmp_path / "a.safetensors"
    script = SCRIPT.format(path=str(path), tests=str(request.path.parents[1]))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=request.config.rootpath
    )
    try:
        for _ in range(5):
            assert process.stdout.readline()
        process.send_signal(number)
        errors = process.communicate(timeout=30)[1].decode()
    finally:
        process.kill()
    assert process.returncode == code, errors

    step = json.loads(path.with_name(f"{path.name}.json").read_text())["step"]
    assert 3 <= step < 1000
    parts, whole = pair(seed=5), pair()
    run(*parts, steps=step + 5, checkpoint=path)
    run(*whole, steps=step + 5)
    assert_same(weights(*parts), weights(*whole))


def test_signal_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(step):
        assert signal.getsignal(signal.SIGINT) != before[0]
        if step == 2:
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == before[0]
        return {}

    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        run(*pair(), checkpoint=tmp_path / "a.safetensors", evaluate=interrupt, evaluate_every=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
