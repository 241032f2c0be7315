"""The samples can be drawn, and differ from their clean originals only by the stated text."""

from __future__ import annotations

import numpy as np
import pytest

from flux_async.imaging import read_text
from flux_async.sandbox import drawing, samples

FULL = 14


def letters(text):
    """Return the letters and digits of a text, in lower case."""
    return {sign.lower() for sign in text if sign.isalnum()}


def test_there_are_many_samples():
    """With the photographs installed there are at least fourteen, each with its own name."""
    names = samples.sample_names()
    assert len(names) >= FULL
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", samples.sample_names())
def test_a_sample_is_its_clean_image_and_text(name):
    """The text covers some of the image; all the rest is the clean image, to the byte."""
    sample = samples.draw_sample(name)
    changed = (sample.image != sample.clean).any(2)
    assert sample.image.shape == sample.clean.shape
    assert 400_000 <= changed.size <= 1_050_000
    assert 0.001 < changed.mean() < 0.35
    assert sample.name == name
    assert sample.title == samples.sample_title(name)
    assert sample.text
    clearly = np.abs(sample.image.astype(int) - sample.clean).max(2) > 20
    border = (clearly[0], clearly[-1], clearly[:, 0], clearly[:, -1])
    assert not any(side.any() for side in border), "no text runs off the image"


@pytest.mark.parametrize("name", ["summer-sale", "chinese-banner", "letter"])
def test_the_text_can_be_read(name):
    """The text recognised in the sample is its stated text."""
    sample = samples.draw_sample(name)
    read = letters(" ".join(line.text for line in read_text(sample.image)))
    assert len(read & letters(sample.text)) > 0.8 * len(letters(sample.text))


def test_the_first_fifteen_samples_show_fifteen_different_images(monkeypatch):
    """The demo shows the first fifteen: no photograph and no landscape is used twice among them."""
    used = []

    def recorded(name):
        draw = getattr(drawing, name)

        def draw_and_record(*given, **options):
            used.append(given[0] if name == "photo" else name)
            return draw(*given, **options)

        return draw_and_record

    for name in ("photo", "landscape"):
        monkeypatch.setattr(drawing, name, recorded(name))
    for name in samples.sample_names()[:15]:
        samples.draw_sample(name)
    assert "chelsea.png" in used
    assert len(set(used)) == len(used)


def test_the_text_is_not_on_the_face_of_the_cat():
    """The caption lies in the lower right corner, beside the face."""
    sample = samples.draw_sample("cat-meme")
    rows, columns = np.nonzero((sample.image != sample.clean).any(2))
    assert rows.min() > 400
    assert columns.min() > 700


def test_drawing_twice_gives_the_same():
    """A sample is the same every time."""
    assert (samples.draw_sample("slide").image == samples.draw_sample("slide").image).all()


def test_without_photographs_the_drawn_samples_are_listed(monkeypatch):
    """Where scikit-image is not installed, only samples that need no photograph are offered."""
    everything = samples.sample_names()
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda _name: None)
    drawn = samples.sample_names()
    assert set(drawn) < set(everything)
    assert "market-poster" in drawn
    with pytest.raises(FileNotFoundError, match=r"flux-async\[demo\]"):
        samples.draw_sample(next(name for name in everything if name not in drawn))


def test_unknown_samples_are_refused():
    """A name that is not listed raises KeyError."""
    with pytest.raises(KeyError):
        samples.draw_sample("nothing")
