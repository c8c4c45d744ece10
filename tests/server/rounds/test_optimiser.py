"""The server's step: plain mean by default, torch.optim otherwise, resumable bit for bit."""

import numpy as np
import pytest

from knowmine.server.rounds.optimiser import ServerOptimiser
from knowmine.shared.errors import SettingsError, UsageError
from knowmine.shared.weights import Array, Weights, digest_of, load_weights, save_weights

STEPPING = ("sgd", "adam", "adamw", "adagrad")


def model(seed: int) -> dict[str, Array]:
    """A small model with a parameter, batch norm's state and a scalar."""
    draw = np.random.default_rng(seed)
    return {
        "conv.weight": draw.normal(size=(4, 3)).astype(np.float32),
        "scale": np.array(draw.normal(), np.float32),
        "bn.running_mean": draw.normal(size=4).astype(np.float32),
        "bn.running_var": draw.random(4).astype(np.float32),
        "bn.num_batches_tracked": np.array(seed, np.int64),
    }


def steps(optimiser: ServerOptimiser, weights: Weights, seeds: list[int]) -> Weights:
    for seed in seeds:
        weights = optimiser.step(weights, model(seed))
    return weights


def test_the_default_is_the_mean_itself():
    """Plain federated averaging."""
    mean = model(2)
    assert digest_of(ServerOptimiser().step(model(1), mean)) == digest_of(mean)


def test_the_mean_remembers_nothing():
    """There is no state to save."""
    optimiser = ServerOptimiser()
    optimiser.step(model(1), model(2))
    assert optimiser.state() == {}


def test_sgd_goes_the_given_part_of_the_way():
    """From 4 half-way to the mean 2 is 3."""
    optimiser = ServerOptimiser("sgd", learning_rate=0.5, momentum=0)
    stepped = optimiser.step({"w": np.full(1, 4, np.float32)}, {"w": np.full(1, 2, np.float32)})
    assert stepped["w"].tolist() == [3.0]


def test_momentum_goes_on():
    """4 to 2 at full rate, then 2 again with half of the last step: 2 - 0 - 1 = 1."""
    optimiser = ServerOptimiser("sgd", learning_rate=1.0, momentum=0.5)
    mean = {"w": np.full(1, 2, np.float32)}
    first = optimiser.step({"w": np.full(1, 4, np.float32)}, mean)
    assert optimiser.step(first, mean)["w"].tolist() == [1.0]


@pytest.mark.parametrize("name", STEPPING)
def test_a_restored_optimiser_steps_the_same_bit_for_bit(name, tmp_path):
    """Save to disk and restore between two steps: the result is the same."""
    undisturbed = ServerOptimiser(name, learning_rate=0.1)
    expected = steps(undisturbed, model(0), [1, 2, 3, 4])

    before = ServerOptimiser(name, learning_rate=0.1)
    half = steps(before, model(0), [1, 2])
    save_weights(tmp_path / "state", before.state())
    after = ServerOptimiser(name, learning_rate=0.1)
    after.restore(load_weights(tmp_path / "state"))
    resumed = steps(after, half, [3, 4])

    assert (digest_of(resumed), digest_of(after.state())) == (
        digest_of(expected),
        digest_of(undisturbed.state()),
    )


@pytest.mark.parametrize("name", STEPPING)
def test_dtypes_and_shapes_stay(name):
    """A stepped model looks like the model."""
    stepped = ServerOptimiser(name).step(model(1), model(2))
    seen = {key: (value.shape, value.dtype) for key, value in stepped.items()}
    assert seen == {key: (value.shape, value.dtype) for key, value in model(1).items()}


@pytest.mark.parametrize("name", STEPPING)
def test_statistics_and_counters_take_the_mean(name):
    """Batch norm's state is measured, not optimised."""
    stepped, mean = ServerOptimiser(name).step(model(1), model(2)), model(2)
    assert all((stepped[key] == mean[key]).all() for key in mean if key.startswith("bn."))


@pytest.mark.parametrize("name", STEPPING)
def test_arguments_are_left_alone(name):
    """Steps return new values."""
    weights, mean = model(1), model(2)
    ServerOptimiser(name).step(weights, mean)
    assert (digest_of(weights), digest_of(mean)) == (digest_of(model(1)), digest_of(model(2)))


@pytest.mark.parametrize("name", STEPPING)
def test_a_saved_state_does_not_change_with_later_steps(name):
    """What was handed out is a copy."""
    optimiser = ServerOptimiser(name)
    weights = optimiser.step(model(0), model(1))
    state = optimiser.state()
    digest = digest_of(state)
    optimiser.step(weights, model(2))
    assert digest_of(state) == digest


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_a_parameter_that_no_site_moved_stays(name):
    """Without a pseudo-gradient there is no step."""
    assert digest_of(ServerOptimiser(name).step(model(1), model(1))) == digest_of(model(1))


def test_another_optimisers_state_is_refused():
    """Adam's memory means nothing to SGD."""
    adam = ServerOptimiser("adam")
    adam.step(model(1), model(2))
    with pytest.raises(UsageError, match="which 'sgd' does not keep"):
        ServerOptimiser("sgd").restore(adam.state())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "lion"}, "unknown server optimiser 'lion'; expected one of mean, sgd"),
        ({"name": "sgd", "learning_rate": 0.0}, "server learning rate is 0.0"),
        ({"name": "sgd", "learning_rate": float("nan")}, "server learning rate is nan"),
        ({"name": "sgd", "momentum": 1.0}, "server momentum is 1.0"),
    ],
)
def test_impossible_settings_are_refused(arguments, words):
    """The message says what was seen and expected."""
    with pytest.raises(SettingsError, match=words):
        ServerOptimiser(**arguments)
