"""What a design costs by its geometry, and latency learned from a few measured designs."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.compress.designs import Design
from engine.compress.groups import trace
from engine.compress.prune import prune
from engine.fleet.geometry import measure_geometry
from engine.fleet.regressors import make
from engine.fleet.surrogates import KINDS, Surrogate, compare_predictions


def first_channels(widths):
    return Design(tuple(tuple(range(width)) for width in widths))


def macs_of(model, example):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() / 2


@pytest.fixture(scope="module")
def geometry(resnet, resnet_groups, example):
    return measure_geometry(resnet, resnet_groups, example)


@pytest.fixture(scope="module")
def designs(geometry):
    random = np.random.default_rng(0)
    ratios = random.random((160, 12)) * random.random((160, 1)) * 0.8
    return np.ceil(geometry.channels * (1 - ratios)).astype(int)


def latency(geometry, designs, noise=0.01):
    """A device that is bound by compute in fours, by memory, and by its overhead."""
    macs, moved = geometry.macs(designs, 4).sum(1), geometry.traffic(designs).sum(1)
    clean = 0.2 + macs / 30e6 + moved / 8e6
    return clean * np.exp(noise * np.random.default_rng(1).standard_normal(len(clean)))


def test_macs_are_those_of_the_pruned_network(resnet, resnet_groups, example, geometry, designs):
    for widths in (geometry.channels.astype(int), *designs[:3]):
        pruned = prune(resnet, resnet_groups, first_channels(widths))
        assert geometry.macs(widths).sum() == macs_of(pruned, example[:1])


def test_depthwise_and_flattened_layers_are_counted_right():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),
        nn.Flatten(),
        nn.Linear(12 * 16, 5),
    )
    example = torch.rand(2, 3, 8, 8)
    groups = trace(model, example)
    geometry = measure_geometry(model, groups, example)
    widths = [5 if group.channels == 8 else 7 for group in groups]
    pruned = prune(model, groups, first_channels(widths))
    assert geometry.macs(widths).sum() == macs_of(pruned, example[:1])
    assert geometry.macs([8, 12]).sum() == macs_of(model, example[:1])
    # weights + input + output of the depthwise layer, float32
    depthwise = geometry.layers.index("2")
    assert geometry.traffic(widths)[0, depthwise] == 4 * (5 * 9 + 5 * 64 + 5 * 16)


def test_measuring_the_geometry_leaves_the_network_as_it_was(resnet_groups, example):
    from engine import models

    model = models.build("resnet20").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_geometry(model, resnet_groups, example)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_padded_widths_cost_whole_blocks(geometry):
    def inner(width, pad):
        # The first layer reads 3 channels and the last makes 10: not of one width.
        return geometry.macs(np.full(12, float(width)), pad)[0, 1:-1].sum()

    assert inner(13, 8) == inner(13, 16) == inner(16, 1)
    assert inner(13, 4) == inner(16, 1) > inner(13, 1)


def test_features_are_finite_for_every_design_and_one_weight_belongs_to_each(geometry, designs):
    features = geometry.features(designs)
    assert features.shape == (160, len(geometry.weights))
    assert np.isfinite(features).all()
    assert np.isfinite(geometry.features(np.ones(12))).all()


@pytest.mark.parametrize(("kind", "mape"), [("gbrt", 8.0), ("gp", 3.0), ("ridge", 3.0)])
def test_every_kind_predicts_designs_that_it_has_not_seen(geometry, designs, kind, mape):
    truth = latency(geometry, designs)
    surrogate = Surrogate(geometry, kind).fit(designs[:60], truth[:60], np.full(60, 0.01))
    error = compare_predictions(surrogate.predict(designs[60:]), truth[60:])
    assert error.mape < mape
    assert error.spearman > 0.9
    report = surrogate.report
    assert report.kind == kind
    assert set(report.errors) == {kind}
    assert report.floor == pytest.approx(0.798, abs=0.001)
    assert report.error.mape < 2 * mape


def test_auto_takes_the_kind_with_the_least_error(geometry, designs):
    truth = latency(geometry, designs)
    report = Surrogate(geometry).fit(designs[:40], truth[:40]).report
    assert set(report.errors) == set(KINDS)
    assert report.error.mape == min(error.mape for error in report.errors.values())
    assert report.samples == 40
    assert report.floor is None


def test_refitting_keeps_the_kind_and_learns_from_what_is_new(geometry, designs):
    truth = latency(geometry, designs)
    first = Surrogate(geometry, "gp").fit(designs[:20], truth[:20])
    second = first.refit(designs[:80], truth[:80])
    assert (first.report.samples, second.report.samples) == (20, 80)
    assert first.report.errors == second.report.errors
    errors = [compare_predictions(s.predict(designs[80:]), truth[80:]) for s in (first, second)]
    assert errors[1].mape < errors[0].mape
    direct = Surrogate(geometry, "gp").fit(designs[:80], truth[:80])
    assert (second.predict(designs) == direct.predict(designs)).all()


@pytest.mark.filterwarnings("ignore:The optimal value")
@pytest.mark.parametrize("targets", [1, 7, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_scikit_learn_with_its_defaults(kind, targets):
    random = np.random.default_rng(3)
    learn, ask = random.standard_normal((60, 8)), random.standard_normal((200, 8))
    # few different values make shallow trees, one makes trees of a single leaf
    values = np.resize(np.linspace(-1, 1, targets) if targets > 1 else [0.5], 60)
    ours = make(kind, 0).fit(learn, values)
    if kind == "gbrt":
        theirs = GradientBoostingRegressor(random_state=0).fit(learn, values)
    elif kind == "ridge":
        theirs = RidgeCV(alphas=np.logspace(-3, 4, 22)).fit(learn, values)
    else:
        theirs = ours._model
    np.testing.assert_allclose(ours.predict(ask), theirs.predict(ask), rtol=1e-7, atol=1e-9)


def test_the_same_measurements_give_the_same_predictions_to_the_last_bit(geometry, designs):
    truth = latency(geometry, designs)
    first, second = (Surrogate(geometry, "gp").fit(designs[:20], truth[:20]) for _ in range(2))
    assert (first.predict(designs) == second.predict(designs)).all()
    assert first.report == second.report


def test_a_population_is_predicted_as_its_members_are(geometry, designs):
    truth = latency(geometry, designs)
    surrogate = Surrogate(geometry, "ridge").fit(designs[:30], truth[:30])
    single = [surrogate.predict(widths)[0] for widths in designs[:10]]
    np.testing.assert_allclose(surrogate.predict(designs[:10]), single, rtol=1e-9)


def test_designs_that_are_all_alike_predict_their_mean(geometry):
    same = np.tile(geometry.channels, (6, 1))
    surrogate = Surrogate(geometry, "gp").fit(same, [2.0] * 6)
    assert surrogate.predict(same[:1])[0] == pytest.approx(2.0)
    assert surrogate.report.error.spearman == 0.0


def test_what_cannot_be_learned_from_is_refused_with_a_sentence(geometry, designs):
    with pytest.raises(ValueError, match="too few"):
        Surrogate(geometry).fit(designs[:4], [1.0] * 4)
    with pytest.raises(ValueError, match="positive number"):
        Surrogate(geometry).fit(designs[:6], [1.0, np.nan, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="before it predicts"):
        Surrogate(geometry).predict(designs[:1])
    with pytest.raises(ValueError, match="gbrt, gp, ridge"):
        Surrogate(geometry, "forest")
