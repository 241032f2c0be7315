"""The images drawn by the sandbox have the requested ratio and are reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async.imaging import read_text
from flux_async.sandbox.image_worker import PIXELS, draw_from_prompt, fit_to_ratio, size_of

RATIOS = ("21:9", "16:9", "4:3", "1:1", "3:4", "9:16", "16:21")


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_size_is_about_a_megapixel_of_the_asked_ratio(ratio):
    """Both sides are multiples of 16, the ratio is met within 1 %, the size within 10 % of a megapixel."""
    width, height = size_of(ratio)
    across, _, down = ratio.partition(":")
    assert width % 16 == height % 16 == 0
    assert width / height == pytest.approx(int(across) / int(down), rel=0.01)
    assert width * height == pytest.approx(PIXELS, rel=0.1)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_prompt_is_drawn_in_the_requested_ratio(ratio):
    """The image has the size of the ratio."""
    image = draw_from_prompt("A lighthouse at dusk by the sea", ratio, seed=1)
    assert image.dtype == np.uint8
    assert image.shape == (*size_of(ratio)[::-1], 3)


def test_the_same_prompt_gives_the_same_image():
    """Prompt and seed decide every pixel; another seed or prompt gives another image."""
    one = draw_from_prompt("city at night", "1:1", seed=5)
    assert (one == draw_from_prompt("city at night", "1:1", seed=5)).all()
    assert (one != draw_from_prompt("city at night", "1:1", seed=6)).any()
    assert (one != draw_from_prompt("city by day", "1:1", seed=5)).any()


def test_the_prompt_and_the_mark_can_be_read_at_the_foot():
    """The image shows its prompt, and that it comes from the sandbox."""
    image = draw_from_prompt("A red fox in the snow", "1:1", seed=1)
    read = " ".join(line.text.replace(" ", "") for line in read_text(image[-120:]))
    assert "redfox" in read
    assert "sandbox" in read


@pytest.mark.parametrize("prompt", ["", "x" * 5000, "雪の中の狐", "line\nbreak\x00", "\U0001f98a"])
def test_any_prompt_can_be_drawn(prompt):
    """Empty, endless and foreign prompts are drawn too."""
    assert draw_from_prompt(prompt, "4:3", seed=0).size


@pytest.mark.parametrize("ratio", ["", "16", "16:0", "0:9", "a:b", "-1:2", "1:2:3", "1.5:1"])
def test_other_ratios_are_refused(ratio):
    """Anything but two positive whole numbers around a colon is a ValueError."""
    with pytest.raises(ValueError, match="ratio"):
        size_of(ratio)


def test_an_image_of_the_right_ratio_is_unchanged():
    """Fitting an image to its own ratio changes nothing."""
    image = np.random.default_rng(1).integers(0, 256, (90, 160, 3), np.uint8)
    assert (fit_to_ratio(image, "16:9") == image).all()


def test_a_near_ratio_cuts_the_middle_out():
    """A landscape made square loses the same on both sides."""
    image = np.zeros((90, 160, 3), np.uint8)
    image[:, 35:125] = 200
    assert (fit_to_ratio(image, "1:1") == 200).all()


def test_a_far_ratio_keeps_the_whole_image():
    """If cutting would lose more than half, the image is laid on a blurred copy instead."""
    image = np.random.default_rng(1).integers(0, 256, (40, 160, 3), np.uint8)
    fitted = fit_to_ratio(image, "9:16")
    top = (fitted.shape[0] - 40) // 2
    assert (fitted[top : top + 40] == image).all()


@given(height=st.integers(1, 300), width=st.integers(1, 300), ratio=st.sampled_from(RATIOS))
def test_any_image_can_be_fitted(height, width, ratio):
    """An image of any shape gets the ratio, as near as whole pixels allow."""
    fitted = fit_to_ratio(np.zeros((height, width, 3), np.uint8), ratio)
    across, down = (int(part) for part in ratio.split(":"))
    assert abs(fitted.shape[1] - fitted.shape[0] * across / down) <= 1 + across / down
