"""Tables and the plot follow from result files; runs that cannot be compared are refused."""

import json
from copy import deepcopy

import pytest

from benchmarks.quality.plot import by_labels, plot
from benchmarks.quality.tables import interval, read_results, table
from knowmine.shared.settings import Plan


def result(method="supervised", labels=0.1, seed=0, dice=(0.5, 0.7)):
    """Two test images, one at each of two sites."""
    by_case = dict(zip(("a", "b"), dice, strict=True))
    return {
        "experiment": "kvasir",
        "method": method,
        "labels": labels,
        "seed": seed,
        "pretrained": True,
        "steps": 10,
        "sites": 2,
        "plan": Plan(method="supervised", seed=seed).model_dump(mode="json"),
        "site_of": {"a": "site-1", "b": "site-2"},
        "test_dice": by_case,
        "test_iou": by_case,
        "test_hd95": by_case,
    }


def kept(folder, *results):
    """A results folder of one experiment."""
    (folder / "kvasir").mkdir()
    for number, one in enumerate(results):
        (folder / "kvasir" / f"{number}.json").write_text(json.dumps(one))
    return folder


def test_a_gain_that_is_the_same_everywhere_has_no_spread():
    """Every image gains .1."""
    base = {(0, str(i)): i / 10 for i in range(8)}
    assert interval({k: v + 0.1 for k, v in base.items()}, base) == pytest.approx((0.1,) * 3)


def test_only_images_that_both_have_are_compared():
    """One gains .2, the other is not in the second."""
    assert interval({(0, "a"): 0.7, (0, "b"): 0.1}, {(0, "a"): 0.5}) == pytest.approx((0.2,) * 3)


def test_a_table_has_a_row_for_each_method_and_fraction_of_labels():
    """Dice of each seed, the lowest site, and the gain with its interval."""
    results = [
        result(),
        result(seed=1, dice=(0.7, 0.9)),
        result("oracle", dice=(0.7, 0.9)),
        result(labels=0.25, dice=(0.6, 0.8)),
    ]
    rows = [line for line in table("kvasir", results, "make it").splitlines() if " % |" in line]
    assert rows == [
        "| 10 % | supervised | 0.600, 0.800 | 0.700 | 0.7 | 0.600 | - |",
        "| 10 % | oracle | 0.800 | 0.800 | 0.8 | 0.700 | +0.200 (+0.200 to +0.200) |",
        "| 25 % | supervised | 0.700 | 0.700 | 0.7 | 0.600 | - |",
    ]
    assert "    make it" in table("kvasir", results, "make it")


def test_seeds_and_methods_may_differ(tmp_path):
    """And variants in their mining settings."""
    variant = result("no-sam")
    variant["plan"]["mining"]["sam"] = "never"
    read = read_results(kept(tmp_path, result(), result(seed=1), result("oracle"), variant))
    assert len(read["kvasir"]) == 4


@pytest.mark.parametrize(
    ("method", "section", "key"),
    [
        ("knowmine", "training", "batch"),
        ("knowmine", "mining", "images"),
        ("no-sam", "training", "batch"),
    ],
)
def test_runs_with_other_settings_are_refused(tmp_path, method, section, key):
    """A gain between them would not be the method's."""
    other = deepcopy(result(method))
    other["plan"][section][key] += 1
    with pytest.raises(SystemExit, match=f"kvasir: {method} was run with other settings"):
        read_results(kept(tmp_path, result(), other))


def test_a_plot_shows_mean_lowest_and_highest_seed(tmp_path):
    """By fraction of labels, in order."""
    results = [result(labels=0.25), result(), result(seed=1, dice=(0.7, 0.9))]
    found = by_labels(results)
    assert list(found) == [0.1, 0.25]
    assert found[0.1] == pytest.approx((0.7, 0.6, 0.8))
    plot({"kvasir": results, "clinic": results[:1]}, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
