import pytest

from pyro_memory import warm_cosine


def test_it_rises_then_falls_to_the_floor():
    factor = warm_cosine(1000, warm=10, floor=0.1)
    assert factor(0) == pytest.approx(0.1, rel=1e-3)
    assert factor(500) == pytest.approx(0.55)
    assert factor(1000) == factor(5000) == pytest.approx(0.1)
    assert all(factor(s) < factor(s + 1) for s in range(9))
    assert all(factor(s) > factor(s + 1) for s in range(9, 999))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"`floor` in \[0, 1\]; got 10, 0 and 2"):
        warm_cosine(10, warm=0, floor=2)
