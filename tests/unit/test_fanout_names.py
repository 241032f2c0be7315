"""File names of results."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async.cli.names import MAX_STEM, file_stem, stem_of

KEY = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("image", "stem"),
    [
        ("https://host/poster.jpg", "poster"),
        ("https://host/a/b/summer%20sale%20(2).final.PNG?x=1#y", "summer-sale-2-final"),
        ("https://host/Été.png", "Ete"),
        ("https://host/плакат.png", "image"),
        ("https://host/", "image"),
        ("https://host", "image"),
        ("https://host/image?id=5", "image"),
        ("https://host/..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("https://host/..%5C..%5Cboot.ini", "boot"),
        ("https://host/%00evil%0a.png", "evil"),
        ("https://host/.hidden", "hidden"),
        ("https://host/CON.png", "CON"),
        ("https://host/" + "x" * 500 + ".png", "x" * MAX_STEM),
        ("http://[broken", "image"),
        ("not a url", "not-a-url"),
    ],
)
def test_the_stem_is_the_last_part_of_the_path_in_safe_characters(image: str, stem: str) -> None:
    """The stem is readable and holds only letters, digits, hyphens and underscores."""
    assert stem_of(image) == stem


@given(st.text())
def test_no_text_leads_out_of_the_folder(image: str) -> None:
    """Whatever the address, the name is a plain one, and not too long."""
    name = file_stem(image, KEY, set())
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}-01234567", name)


def test_pictures_of_one_name_and_one_short_key_get_different_files() -> None:
    """Where stem and eight digits are the same, more digits tell two pictures apart, on any file system."""
    taken: set[str] = set()
    names = [
        file_stem("https://a/x.png", KEY, taken),
        file_stem("https://b/X.png", KEY[:10] + "0" * 54, taken),
    ]
    assert names == ["x-01234567", "X-0123456789000000"]
