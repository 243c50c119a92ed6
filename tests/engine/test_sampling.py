"""Which designs are measured, before a search and near its incumbents."""

import numpy as np

from engine.search import sampling
from engine.search.space import Space

SPACE = Space((64,) * 6, (64,) * 6, reach=0.2)


def drawn(space, count, wide=0.8, kind="guided", taken=None):
    taken = {space.now} if taken is None else taken
    return sampling.first(space, count, np.random.default_rng(0), taken, wide, kind)


def test_first_designs_are_new_distinct_and_reach_from_small_genes_to_wide_ones():
    taken = {SPACE.now}
    designs = drawn(SPACE, 80, taken=taken)
    assert len(designs) == len(set(designs)) == 80
    assert SPACE.now not in designs
    assert set(designs) < taken
    assert designs[0] == SPACE.smallest
    removed = 1 - np.array(designs) / 64
    inside = (removed <= 0.2).all(1)
    assert 0.7 < inside.mean() < 0.95
    assert removed.min() >= 0
    assert removed.max() <= 0.8
    assert removed.mean(1).max() > 0.6
    assert (removed[inside].max(1) < 0.1).sum() >= 4


def test_a_box_with_few_designs_gives_those_it_has():
    space = Space((4, 4), (4, 4), reach=0.5)
    assert len(drawn(space, 30, wide=0.5)) == 8


def test_uniform_designs_keep_any_share_of_every_group():
    designs = np.array(drawn(SPACE, 300, kind="uniform"))
    assert designs.min() == 1
    assert designs.max() == 64
    assert np.abs(designs.mean(0) - 32.5).max() < 4
    assert np.abs(np.corrcoef(designs.T) - np.eye(6)).max() < 0.2


def test_more_designs_lie_in_the_box_near_the_incumbents_and_are_those_that_teach_most():
    incumbents = [(54, 64, 52, 60, 64, 58), (52, 62, 56, 60, 64, 52)]
    taken = {SPACE.now, *incumbents}
    asked = []

    def learns(pool, count):
        asked.append(pool)
        return [3, 1, 4][:count]

    found = sampling.more(SPACE, 3, np.random.default_rng(0), taken, incumbents, learns)
    (pool,) = asked
    assert found == [pool[3], pool[1], pool[4]]
    assert set(found) < taken
    assert len(pool) == len(set(pool)) == sampling.POOL
    assert not {SPACE.now, *incumbents} & set(pool)
    away = np.array(pool)
    assert (away >= SPACE.smallest).all()
    assert (away <= SPACE.now).all()
    same = [np.isin(away[:, g], [i[g] for i in incumbents]).mean() for g in range(6)]
    assert min(same) > 0.3
