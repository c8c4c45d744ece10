"""Random views keep image and mask together, and distort the strong ones alone."""

import pytest
import torch

from knowmine.client.training.augmentation import augment, cut_mix

PX = 48
MANY = 40
CENTRE = slice(PX // 2 - 4, PX // 2 + 4)


def views(images, targets=None, *, seed=0, orientation="any", strong=False):
    """Views of a batch, strong for all, none, or those in a list."""
    n = len(images)
    targets = torch.zeros(n, 1, PX, PX) if targets is None else targets
    which = torch.tensor(strong if isinstance(strong, list) else [strong] * n)
    generator = torch.Generator().manual_seed(seed)
    return augment(images, targets, generator, orientation=orientation, strong=which)


def blob(rows=slice(14, 26), columns=slice(20, 34)):
    """One mask for many images, (MANY, 1, PX, PX)."""
    mask = torch.zeros(MANY, 1, PX, PX)
    mask[:, :, rows, columns] = 1
    return mask


def grey(level=0.5):
    return torch.full((MANY, 3, PX, PX), level)


@pytest.mark.parametrize("orientation", ["upright", "any"])
@pytest.mark.parametrize("strong", [False, True])
def test_image_and_mask_move_together(orientation, strong):
    """A blob that is bright where its mask is stays so, whatever the view."""
    mask = blob()
    images, targets = views(mask.repeat(1, 3, 1, 1), mask, orientation=orientation, strong=strong)
    for image, target in zip(images.mean(1), targets[:, 0], strict=True):
        bright = image > (image.max() + image.min()) / 2
        both = (bright & (target > 0.5)).sum()
        assert 2 * both / (bright.sum() + (target > 0.5).sum()) > 0.85


def test_views_differ():
    """The images of a batch are moved one by one."""
    _, targets = views(grey(), blob())
    assert len({tuple(target.flatten().tolist()) for target in targets}) == MANY


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_values_stay_in_bounds(level, strong):
    """Black, grey and white, however bright the light."""
    images, _ = views(grey(level), strong=strong)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1


def test_targets_stay_in_bounds():
    """Soft targets remain soft targets, and no colour touches them."""
    _, targets = views(grey(), torch.rand(MANY, 1, PX, PX), strong=True)
    assert targets.min() >= 0 and targets.max() <= 1


def test_weak_views_are_not_noisy():
    """The middle of an even image stays even."""
    images, _ = views(grey())
    assert images[:, :, CENTRE, CENTRE].flatten(2).std(2).max() < 1e-5


def test_strong_views_are_noisy():
    """Each of them."""
    images, _ = views(grey(), strong=True)
    assert images[:, :, CENTRE, CENTRE].flatten(2).std(2).min() > 0.005


@pytest.mark.parametrize(("strong", "least", "most"), [(False, 0, 0), (True, 0.2, 0.8)])
def test_strong_views_alone_are_blurred(strong, least, most):
    """A fine pattern loses its contrast in about half of them, in no weak one."""
    pattern = torch.zeros(MANY, 3, PX, PX)
    pattern[..., ::6] = pattern[..., 1::6] = pattern[..., 2::6] = 1
    images, _ = views(pattern, orientation="upright", strong=strong)
    contrast = images[:, :, CENTRE, CENTRE].flatten(1).std(1)
    assert least <= (contrast < 0.2).float().mean() <= most


def test_what_is_strong_leaves_its_neighbours_alone():
    """A weak view is the same whatever else is in the batch."""
    images = torch.rand(4, 3, PX, PX)
    weak, _ = views(images, strong=[False, False, False, False])
    mixed, _ = views(images, strong=[False, True, False, True])
    assert torch.equal(mixed[::2], weak[::2]) and not torch.equal(mixed[1::2], weak[1::2])


def test_strong_colours_reach_further():
    """The spread of brightness among strong views is wider than among weak ones."""
    weak, strong = (
        views(grey(), strong=which)[0][:, :, CENTRE, CENTRE].mean((1, 2, 3)).std()
        for which in (False, True)
    )
    assert strong > 1.4 * weak


def middle_row(targets):
    """Where each target's weight lies, from 0 (top) to PX - 1."""
    rows = torch.arange(PX).view(1, 1, PX, 1)
    return (targets * rows).sum((1, 2, 3)) / targets.sum((1, 2, 3))


def test_upright_is_never_upside_down():
    """What was at the top remains above the middle, give or take the shift."""
    _, targets = views(grey(), blob(slice(0, 20), slice(14, 34)), orientation="upright")
    assert (middle_row(targets) < PX / 2).all()


def test_any_orientation_is_upside_down_at_times():
    """About half of the time."""
    _, targets = views(grey(), blob(slice(6, 16), slice(18, 30)), orientation="any")
    assert 0.2 < (middle_row(targets) > PX / 2).float().mean() < 0.8


def test_both_mirror_images_occur():
    """The left side comes out on the left and on the right."""
    _, targets = views(grey(), blob(slice(18, 30), slice(4, 14)), orientation="upright")
    columns = (targets * torch.arange(PX)).sum((1, 2, 3)) / targets.sum((1, 2, 3))
    assert 0.2 < (columns > PX / 2).float().mean() < 0.8


def test_equal_generators_equal_views():
    """And another seed gives others."""
    images = torch.rand(4, 3, PX, PX)
    one, again, other = (views(images, seed=seed, strong=True)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_arguments_are_left_alone():
    """The caller's images stay as they were."""
    images = torch.rand(4, 3, PX, PX)
    before = images.clone()
    views(images, strong=True)
    assert torch.equal(images, before)


# ------------------------------------------------------------------------------ cut-mix


def mixed(strong, chance=1.0, seed=0):
    """Image i is i + 1 everywhere, and so is its target."""
    n = len(strong)
    levels = torch.arange(1.0, n + 1).view(n, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    return cut_mix(
        levels.expand(n, 3, PX, PX),
        levels.expand(n, 1, PX, PX),
        generator,
        torch.tensor(strong),
        chance,
    )


def test_a_box_of_another_image_brings_its_target():
    """Wherever the image is another's, so is the target."""
    images, targets = mixed([True] * 6)
    assert torch.equal(images[:, :1], targets)
    assert all(len(image.unique()) == 2 for image in images)


def test_labelled_views_get_no_box():
    """Labels are learnt as they are."""
    images, _ = mixed([False, False, True])
    assert [len(image.unique()) for image in images] == [1, 1, 2]


def test_without_chance_nothing_is_mixed():
    """The off-value is off."""
    images, _ = mixed([True] * 6, chance=0.0)
    assert all(len(image.unique()) == 1 for image in images)


def test_a_box_has_a_tenth_to_half_of_the_image():
    """So that something of both is left."""
    images, _ = mixed([True] * 40)
    own = torch.arange(1.0, 41).view(40, 1, 1)
    shares = (images[:, 0] != own).float().mean((1, 2))
    assert shares.min() > 0.05 and shares.max() <= 0.5
