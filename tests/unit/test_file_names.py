"""File names of results."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async.batch.file_names import is_safe_name, safe_name
from flux_async.cli.run_folder import MAX_STEM, file_stem, stem_of

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
        ("photos/100% #1?.final.jpg", "100-1-final"),
        ("C:\\photos\\a b.png", "a-b"),
    ],
)
def test_the_stem_is_the_last_part_of_the_path_in_safe_characters(image: str, stem: str) -> None:
    """The stem is readable and holds only letters, digits, hyphens and underscores."""
    assert stem_of(image) == stem


@given(st.text(), st.text(min_size=1))
def test_no_text_leads_out_of_the_folder(image: str, key: str) -> None:
    """Whatever address and key, the name is a plain one, and not too long."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}-0123456789ab", file_stem(image, KEY))
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}-[0-9a-f]{12}", file_stem(image, key.encode().hex()))


def test_images_of_one_name_get_files_of_their_own() -> None:
    """The same name under another key is another file, whether the key is a digest or the caller's own."""
    keys = [KEY, "f" + KEY[1:], "first", "second", KEY[:12]]
    assert len({file_stem("https://a/x.png", key) for key in keys}) == len(keys)
    assert file_stem("https://a/x.png", "first") == file_stem("https://a/x.png", "first")


# --- names of a batch -------------------------------------------------------------------------------------

DEVICES = ["con", "NUL", "aux.txt", "Com1.png", "lpt9", "prn.tar.gz", "con .txt"]
HOSTILE = [
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../b",
    "a\\b",
    "c:\\x",
    "a\x00b",
    "a\nb",
    "\x1b[2J",
]
HOSTILE += ["dot.", "space ", "a:stream", "what?", "x" * 300, "", " ", *DEVICES]


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_key_has_a_safe_name_of_its_own(key: str) -> None:
    """Readable where it can be, in the folder, and not too long."""
    name = safe_name(key)
    assert name != key
    assert is_safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9-]{1,60}-[0-9a-f]{16}", name)


@pytest.mark.parametrize(
    "name", [name for name in HOSTILE if name != " "] + ["a/", "a//b", "a/con/b", "a./b", " "]
)
def test_a_hostile_name_is_not_safe(name: str) -> None:
    """Traversal, devices, control characters, and what some disk takes for something else."""
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["a", "a/b.png", "a b", "ä", "console", "com10", "nul-1", ".hidden", "v1.2"])
def test_an_ordinary_name_is_safe(name: str) -> None:
    """Folders, spaces within, other alphabets, and words that begin like a device."""
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "pair", [("a", "A"), ("poster.png", "poster.jpg"), ("x.JPG", "x.jpg"), ("a b", "a-b")]
)
def test_different_keys_have_different_files(pair: tuple[str, str]) -> None:
    """On a disk that takes A for a, and where the ending follows the content."""
    first, second = (safe_name(key).lower() for key in pair)
    assert first != second
    assert not {first, second} & {"poster.png", "poster.jpg", "x.jpg"}


@given(st.text())
def test_any_key_has_a_safe_name(key: str) -> None:
    """Whatever the caller calls a job."""
    assert is_safe_name(safe_name(key))
