"""The controller of precisions: its gradient, its state, and what it learns."""

import pickle

import numpy as np
import pytest

from engine.compress.bits_policy import Controller


def made_up(seed, layers=20, actions=3):
    """Return features, a reward with one best action a layer, and that best policy."""
    random = np.random.default_rng(seed)
    best = random.integers(0, actions, layers)
    worth = random.lognormal(0, 0.7, layers)
    # A feature that tells half of it, and one that tells nothing.
    features = np.column_stack([best + random.normal(0, 1, layers), random.normal(0, 1, layers)])

    def reward(policies):
        right = (policies == best) * worth
        # Neighbours that are both right are worth more: layers are not independent.
        return right.sum(axis=1) + 0.5 * (right[:, 1:] * right[:, :-1] > 0).sum(axis=1)

    return features, reward, best


def drive(controller, reward, rounds, count=8):
    best = -np.inf
    for _ in range(rounds):
        policies = controller.ask(count)
        rewards = reward(policies)
        best = max(best, rewards.max())
        controller.tell(policies, rewards)
    return best


@pytest.mark.parametrize("seed", range(5))
def test_it_learns_a_known_policy_far_better_than_chance_does_with_as_many_evaluations(seed):
    features, reward, best = made_up(seed)
    controller = Controller(features, 3, seed=seed)
    found = drive(controller, reward, rounds=40)
    luck = np.random.default_rng(seed + 100).integers(0, 3, (40 * 8, len(best)))
    highest = reward(best[None])[0]
    assert found > 0.85 * highest
    assert reward(luck).max() < 0.75 * highest
    assert reward(controller.likeliest[None])[0] > 0.85 * highest
    assert controller.uncertainty < 0.5


def test_one_step_is_what_the_formulas_give_by_hand():
    # One layer: its only feature is the constant, so free logits and weights see the same slope.
    controller = Controller([[5.0]], 3, rate=0.7, memory=0.4, entropy=0.3, decay=0.5, seed=1)
    logits = np.zeros(3)
    baseline = square = None
    for number, rewards in enumerate([[1.0, 4.0], [2.0, 3.5]]):
        policies = np.array([[0], [2]])
        p = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(controller.probabilities[0], p, atol=1e-12)
        r = np.array(rewards)
        if baseline is None:
            baseline, square = r.mean(), r.var()
        over = r - baseline
        if number:
            square = 0.4 * square + 0.6 * (over**2).mean()
        advantages = over / np.sqrt(square)
        slope = (
            sum(
                a * (np.eye(3)[action] - p)
                for a, action in zip(advantages, policies[:, 0], strict=True)
            )
            / 2
        )
        entropy = -(p * np.log(p)).sum()
        slope += 0.3 * 0.5**number * -p * (np.log(p) + entropy)
        baseline = r.mean() if not number else 0.4 * baseline + 0.6 * r.mean()
        # The constant beside a feature without variance: a row of length sqrt(1/2).
        logits = logits + 0.7 * slope + 0.5 * 0.7 * slope
        controller.tell(policies, rewards)
    np.testing.assert_allclose(
        controller.probabilities[0], np.exp(logits) / np.exp(logits).sum(), atol=1e-12
    )


def test_the_entropy_bonus_pulls_towards_even_chances_and_fades():
    def settled(entropy, decay=1.0):
        features, reward, _ = made_up(3)
        controller = Controller(features, 3, entropy=entropy, decay=decay, seed=3)
        drive(controller, reward, rounds=40)
        return controller.uncertainty

    assert settled(0.0) < settled(0.5) - 0.1
    assert settled(0.5, decay=0.8) < settled(0.5) - 0.1


def test_what_layers_have_in_common_is_learnt_by_their_features():
    # Twenty layers learn; twenty others look the same, but nothing comes of what they do.
    features = np.tile(np.repeat([[0.0], [1.0]], 10, axis=0), (2, 1))
    controller = Controller(features, 2, rate=0.5, seed=0)
    best, random = np.repeat([0, 1], 10), np.random.default_rng(0)
    for _ in range(40):
        policies = controller.ask(8)
        policies[:, 20:] = random.integers(0, 2, (8, 20))
        controller.tell(policies, (policies[:, :20] == best).mean(axis=1))
    likely = controller.probabilities[20:, 1]
    assert likely[:10].mean() < 0.4
    assert likely[10:].mean() > 0.6


def test_it_pickles_and_goes_on_to_the_same_result():
    features, reward, _ = made_up(1)
    one = Controller(features, 3, seed=7)
    drive(one, reward, rounds=5)
    other = pickle.loads(pickle.dumps(one))
    assert drive(one, reward, rounds=5) == drive(other, reward, rounds=5)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    np.testing.assert_array_equal(one.ask(4), other.ask(4))


def test_the_same_seed_gives_the_same_policies():
    draws = [Controller(np.eye(6), 2, seed=seed).ask(20) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_actions_that_a_layer_is_not_allowed_are_never_drawn():
    allowed = np.array([[True, False, True], [False, True, False], [True, True, True]])
    controller = Controller(np.zeros((3, 1)), 3, allowed, seed=0)
    for _ in range(20):
        policies = controller.ask(30)
        assert allowed[np.arange(3), policies].all()
        controller.tell(policies, policies.sum(axis=1))
    assert controller.likeliest.tolist() == [2, 1, 2]
    assert controller.probabilities[1].tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="an action that its layer is not allowed"):
        controller.tell([[1, 1, 1]], [1.0])
    with pytest.raises(ValueError, match="an action that its layer is not allowed"):
        controller.tell([[0, 1, 3]], [1.0])


def test_a_reward_that_is_not_finite_counts_as_the_worst():
    one, other = (Controller(np.eye(4), 2, seed=0) for _ in range(2))
    policies = one.ask(3)
    one.tell(policies, [1.0, -np.inf, 0.25])
    other.tell(policies, [1.0, 0.25, 0.25])
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    before = one.probabilities
    one.tell(policies, [np.nan] * 3)
    np.testing.assert_array_equal(one.probabilities, before)


def test_equal_rewards_teach_nothing_but_the_entropy():
    controller = Controller(np.eye(4), 2, seed=0)
    controller.tell(controller.ask(5), [3.0] * 5)
    np.testing.assert_allclose(controller.probabilities, 0.5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"features": []}, "features are finite numbers"),
        ({"features": [[np.nan]]}, "features are finite numbers"),
        ({"actions": 0}, "at least one of the actions"),
        ({"allowed": [[True, True], [False, False]]}, "at least one of the actions"),
        ({"allowed": [[True, True]]}, "at least one of the actions"),
        ({"rate": 0.0}, "rate is positive"),
        ({"entropy": -0.1}, "entropy 0 or more"),
        ({"memory": 1.0}, "memory lies in"),
        ({"decay": 0.0}, "decay in"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Controller(**{"features": [[1.0], [2.0]], "actions": 2, **arguments})


def test_asking_for_nothing_and_telling_of_something_else_are_refused():
    controller = Controller(np.eye(3), 2, seed=0)
    with pytest.raises(ValueError, match="at least one policy is asked for, not 0"):
        controller.ask(0)
    for policies, rewards in (([[0, 1]], [1.0]), ([[0, 1, 0]], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="one policy of all layers"):
            controller.tell(policies, rewards)
