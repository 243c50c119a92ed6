"""Every optimiser in one shape: counting, bounds, starting points, and going on after a pickle."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from engine.search.ncs import NCS, AuthorsNCS, normalised_correlation
from engine.search.optimisers import KINDS, POPULATION, make
from engine.search.settings import Settings

PEERS = ("random", "cma", "de", "de-pymoo", "nsga2")
LOWER, UPPER = np.array([-1.0, 0.0, 2.0]), np.array([1.0, 4.0, 2.5])


def bowl(points, objectives=1):
    """Lowest inside the box; with two objectives the second one is lowest at a corner."""
    cube = (points - LOWER) / (UPPER - LOWER)
    value = ((cube - 0.3) ** 2).sum(axis=1)
    return value if objectives == 1 else np.stack([value, ((cube - 1) ** 2).sum(axis=1)], axis=1)


def search(kind, evaluations=200, **more):
    return make(kind, LOWER, UPPER, evaluations, **{"seed": 3, **more})


def drive(optimiser, function=bowl, populations=10**9):
    asked = []
    while not optimiser.done and populations > 0:
        asked.append(optimiser.ask())
        optimiser.tell(function(asked[-1], optimiser.objectives))
        populations -= 1
    return np.concatenate(asked)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_counts_its_evaluations_exactly_and_stays_in_the_box(kind):
    optimiser = search(kind, 230)
    points = drive(optimiser)
    assert len(points) == optimiser.evaluations == 230
    assert (points >= LOWER).all()
    assert (points <= UPPER).all()
    values = bowl(points, optimiser.objectives).reshape(230, -1).sum(axis=1)
    assert optimiser.best_value == pytest.approx(values.min())
    np.testing.assert_allclose(optimiser.best, points[values.argmin()])
    with pytest.raises(ValueError, match="done"):
        optimiser.ask()


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_population_each_kind_takes_its_own(kind):
    assert len(search(kind, 400, population=0).ask()) == POPULATION[kind]
    assert len(search(kind, 80, population=0).ask()) == min(POPULATION[kind], 4)


@pytest.mark.parametrize("kind", PEERS)
def test_a_last_population_that_is_too_large_is_cut_short(kind):
    optimiser = search(kind, 57)
    assert len(drive(optimiser)) == optimiser.evaluations == 57


@pytest.mark.parametrize("between", [False, True], ids=["after tell", "between ask and tell"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_search_goes_on_to_the_last_bit(kind, between):
    optimiser = search(kind, 400)
    drive(optimiser, populations=7)
    if between:
        optimiser.ask()
    twin = pickle.loads(pickle.dumps(optimiser))
    np.random.default_rng().random()
    np.random.seed(99)  # nobody's business
    assert (drive(optimiser) == drive(twin)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_is_the_same_run_and_another_one_another(kind):
    runs = [drive(search(kind, seed=seed)) for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert not (runs[0] == runs[2]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_leaves_numpys_own_random_numbers_alone(kind):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    drive(search(kind))
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cma"])
def test_the_first_population_holds_the_starting_points(kind):
    start = np.array([[0.5, 1.0, 2.1], [-1.0, 0.0, 2.0]])
    np.testing.assert_allclose(search(kind, start=start).ask()[:2], start)


def test_cma_begins_around_the_first_starting_point():
    start = np.array([[0.5, 1.0, 2.1], [-1.0, 0.0, 2.0]])
    points = search("cma", start=start, sigma=0.01).ask()
    assert (np.abs(points - start[0]) < 0.05 * (UPPER - LOWER)).all()
    assert points.std() > 0
    corner = drive(search("cma", start=LOWER))
    assert (corner >= LOWER).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_loses_and_never_stops_a_search(kind):
    def half_broken(points, objectives):
        values = bowl(points, objectives)
        values[points[:, 0] < -0.2] = np.nan
        values[points[:, 1] > 2] = -np.inf
        return values

    optimiser = search(kind, 600)
    drive(optimiser, half_broken)
    assert np.isfinite(optimiser.best_value)
    assert optimiser.best[0] >= -0.2
    assert optimiser.best[1] <= 2
    nothing = search(kind)
    drive(nothing, lambda points, objectives: np.full_like(bowl(points, objectives), np.nan))
    assert nothing.best_value == np.inf
    assert nothing.evaluations == 200


@pytest.mark.parametrize("kind", ["ncs", "phc", "cma", "de", "de-pymoo"])
def test_every_kind_finds_the_bottom_better_than_chance(kind):
    chance, found = search("random", 1000), search(kind, 1000)
    drive(chance)
    drive(found)
    assert found.best_value < 0.3 * chance.best_value
    assert found.best_value < 1e-3


def test_nsga2_spreads_over_the_front_of_two_objectives():
    optimiser = search("nsga2", 2000, population=20)
    last = bowl(drive(optimiser)[-200:], 2)
    # The front of this problem: sqrt(a) + sqrt(b) is the distance between the two bottoms.
    off = np.sqrt(last).sum(axis=1) / np.sqrt(3 * 0.7**2) - 1
    assert np.median(off) < 0.05
    assert np.ptp(np.sqrt(last[:, 0])) > 0.8


def test_cma_restarts_with_twice_the_population_once_it_has_converged():
    optimiser = search("cma", 4000)
    sizes = []
    while not optimiser.done:
        points = optimiser.ask()
        optimiser.tell(bowl(points))
        sizes.append(len(points))
    assert sizes[0] == 10
    assert 20 in sizes
    assert optimiser.best_value < 1e-10


def test_the_authors_variant_accepts_what_the_paper_refuses():
    """Parents at 1 and 2, their offspring far worse: only without f_min do they replace them."""
    accepted = {}
    for kind in (NCS, AuthorsNCS):
        optimiser = kind(LOWER, UPPER, 10_000, population=10, seed=1)
        optimiser.tell(100 + np.arange(10.0))
        before = optimiser.population
        optimiser.ask()
        optimiser.tell(np.full(10, 112.0))
        accepted[kind] = int((optimiser.population != before).any(axis=1).sum())
    assert accepted[NCS] < accepted[AuthorsNCS]


def test_the_authors_variant_differs_where_it_is_said_to():
    optimiser = AuthorsNCS(LOWER, UPPER, 1000, seed=1, sigma=5.0)
    deviations = [optimiser._deviation(t) for t in (0, 10, 99)]
    assert deviations == pytest.approx([0.1, 0.0, 0.89])
    optimiser.tell(np.arange(10.0) + 1)
    points = optimiser.ask()
    assert ((points == LOWER) | (points == UPPER)).any()  # clipped
    reflected = NCS(LOWER, UPPER, 1000, seed=1, sigma=5.0)
    reflected.tell(np.arange(10.0) + 1)
    inside = reflected.ask()
    assert not ((inside == LOWER) | (inside == UPPER)).any()
    cube = np.random.default_rng(0).random((2, 4, 3))
    sigma = np.full(4, 0.1)
    against = [normalised_correlation(cube[0], cube[1], sigma, other) for other in cube]
    assert not np.allclose(*against)


def test_an_argument_without_sense_is_refused_by_all():
    for kind in KINDS:
        for change in (
            {"evaluations": 5},
            {"start": [[2.0, 1.0, 2.1]]},
            {"start": [[0.0]]},
            {"population": -1},
        ):
            with pytest.raises(ValueError, match=r"evaluations cover|outside the box|start needs"):
                search(kind, **change)
    with pytest.raises(ValueError, match="no such optimiser"):
        search("annealing")
    with pytest.raises(ValueError, match="sigma is positive"):
        search("cma", sigma=0.0)
    for kind in ("de", "de-pymoo"):
        with pytest.raises(ValueError, match="four at least"):
            search(kind, population=3)
        with pytest.raises(ValueError, match="population is 3; it must be at least 4 with the opt"):
            Settings(optimiser=kind, population=3)
    assert Settings(optimiser="ncs", population=3).at_once == 3


@pytest.mark.parametrize("kind", PEERS)
def test_telling_out_of_turn_is_refused(kind):
    optimiser = search(kind)
    with pytest.raises(ValueError, match="ask for points"):
        optimiser.tell([1.0])
    optimiser.ask()
    with pytest.raises(ValueError, match="are expected"):
        optimiser.tell([1.0])


def test_without_the_extra_one_sentence_says_what_to_install():
    code = (
        "import sys; sys.modules['cma'] = sys.modules['pymoo'] = None\n"
        "from engine.search.optimisers import make\n"
        "[make(kind, [0], [1], 10) for kind in ('ncs', 'random', 'de')]\n"
        "for kind in ('cma', 'de-pymoo', 'nsga2'):\n"
        "    try: make(kind, [0.0], [1.0], 10)\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count('pip install "hdap-tui[peers]"') == 3
