"""When a detection has asked enough."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from retrieval_heads.heads.stopping import UntilStable


def test_looks_grow_and_end_with_the_most_that_is_asked() -> None:
    assert UntilStable().looks(600) == [20, 30, 45, 68, 102, 153, 230, 345, 518, 600]
    assert UntilStable(at_most=50).looks(600) == [20, 30, 45, 50]
    assert UntilStable(top=40).looks(100) == [80, 100]
    assert UntilStable().looks(12) == [12]
    assert UntilStable(at_most=9999).looks(600)[-1] == 600


def test_every_order_of_asking_is_as_likely_and_seeded() -> None:
    counts = Counter(tuple(UntilStable(seed=seed).in_order("abc")) for seed in range(1200))
    assert set(counts) == set(permutations("abc"))
    assert min(counts.values()) > 140
    assert UntilStable(seed=3).in_order(range(50)) == UntilStable(seed=3).in_order(range(50)) != list(range(50))


def test_samples_that_agree_are_enough_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    steady = np.linspace(1, 0, 100) + random.normal(0, 1e-4, (20, 100))
    assert UntilStable().is_settled(steady, 20, 600)
    assert not UntilStable().is_settled(random.random((20, 100)), 20, 600)
    assert not UntilStable().is_settled(steady[:4], 20, 600), "four answers that count tell nothing"
    assert not UntilStable().is_settled(np.zeros((20, 100)), 20, 600), "no head stands out"


def test_the_fewer_cells_are_left_the_fewer_samples_are_needed() -> None:
    random = np.random.default_rng(0)
    figures = np.clip(np.linspace(1, 0, 60) + random.normal(0, 0.2, (90, 60)), 0, 1)
    assert not UntilStable().is_settled(figures, 90, 9000)
    assert UntilStable().is_settled(figures, 90, 91)


def test_it_errs_no_more_often_than_it_may() -> None:
    """Grids of 300 cells, whose heads stray by needle, by text and by cell; asked in 60 orders each of two kinds."""
    rule = UntilStable(top=5, agreement=0.8, error=0.1)
    wrong = stopped = 0
    for seed in range(120):
        random = np.random.default_rng(seed)
        mean = 0.8 * np.exp(-np.arange(60) / (8 if seed % 2 else 20))
        strays = random.normal(0, 0.1, (6, 1, 1, 60)) + random.normal(0, 0.1, (1, 5, 1, 60))
        cells = np.clip(mean + strays + random.normal(0, 0.1, (6, 5, 10, 60)), 0, 1).reshape(300, 60)
        order = np.array(rule.model_copy(update={"seed": seed}).in_order(range(300)))
        for look in rule.looks(300)[:-1]:
            if rule.is_settled(cells[order[:look]], look, 300):
                stopped += 1
                best, all_best = (set(np.argsort(-some.mean(0))[:5].tolist()) for some in (cells[order[:look]], cells))
                wrong += len(best & all_best) < 4
                break
    assert wrong / 120 <= 0.1
    assert stopped > 40, "it stops at all"


@pytest.mark.parametrize("keys", [{"top": 0}, {"agreement": 0}, {"agreement": 1.5}, {"at_most": 0}, {"error": 1}])
def test_a_rule_that_nothing_could_meet_is_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        UntilStable.model_validate(keys)
