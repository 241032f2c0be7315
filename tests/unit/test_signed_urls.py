"""Signatures in addresses are ignored; parts that identify a file are not."""

from __future__ import annotations

import pytest

from flux_async.policy.image_urls import bare_url, is_resigned, unsigned_url

FILE = "https://bucket.example/a/poster.jpg"


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("X-Amz-Algorithm=AWS4&X-Amz-Date=1&X-Amz-Expires=60&X-Amz-Signature=ab", ""),
        ("x-goog-signature=ab&versionId=7", "?versionId=7"),
        ("AWSAccessKeyId=k&Expires=1&Signature=s%2F", ""),
        ("Expires=1&Signature=s&Key-Pair-Id=k&Policy=p", ""),
        ("sv=2024&se=2026&sr=b&sp=r&sig=ab&width=3", "?width=3"),
        ("ex=1&is=2&hm=3", ""),
        ("OSSAccessKeyId=k&Expires=1&Signature=s", ""),
        ("q-sign-algorithm=sha1&q-signature=ab", ""),
        ("alt=media&token=ab", "?alt=media"),
        ("X-Amz-Signature=ab#top", ""),
        ("", ""),
        ("md5=0PrZ8Wv3kkQFIGlxQLSx0A&expires=1700000000", ""),
        ("oh=00_AfD&oe=66&_nc_ohc=Q7k&_nc_cat=1&stp=dst-jpg", "?_nc_cat=1&stp=dst-jpg"),
        ("verify=1700000000-aGVsbG8gd29ybGQgaGVsbG8%3D&w=2", "?w=2"),
        ("jwt=eyJhbGciOiJIUzI1NiJ9.e30.x", ""),
        ("hash=0123456789abcdef&e=1700000000", ""),
        ("st=0PrZ8Wv3kkQFIGlxQLSx0A&e=1700000000", ""),
        ("s=0123456789abcdef0123456789abcdef&exp=1700000000", ""),
    ],
)
def test_signatures_of_the_usual_stores_are_left_out(query: str, kept: str) -> None:
    """Parts that distinguish files stay, as they were written."""
    assert unsigned_url(f"{FILE}?{query}") == FILE + kept


@pytest.mark.parametrize(
    "url",
    [
        FILE,
        f"{FILE}?v=2",
        "https://h.example/image.php?id=17",
        "https://h.example/weather?st=ny&se=1",  # Azure's short names, without a signature
        "https://h.example/download?token=17",  # the token is the file's name
        "https://h.example/download?hash=0123456789abcdef&e=1700000000",  # the hash is the file's name
        "https://h.example/a.jpg?s=200&e=1700000000",  # a size
        "https://h.example/a.jpg?md5=0123456789abcdef0123456789abcdef",  # without a time
        "https://h.example/a.jpg?verify=yes&oh=1",
        "https://h.example/a.jpg?st=ny&e=3",
    ],
)
def test_an_address_without_a_signature_is_left_as_it_is(url: str) -> None:
    """Nothing to leave out: two such addresses are two images."""
    assert unsigned_url(url) == url


def test_addresses_that_differ_only_in_their_signatures_are_one_image() -> None:
    """Signed today, signed yesterday, not signed: the same; another file or version: not the same."""
    signed = f"{FILE}?X-Amz-Signature="
    assert is_resigned(f"{signed}1", f"{signed}2")
    assert is_resigned(FILE, f"{signed}2")
    assert not is_resigned(f"{signed}1", f"{signed}1")
    assert not is_resigned(f"{signed}1", f"{FILE}?X-Amz-Signature=1&v=2")
    assert not is_resigned("https://h.example/i.php?id=17", "https://h.example/i.php?id=18")


def test_the_token_of_a_media_link_is_a_signature_whatever_its_path() -> None:
    """Firebase: the file is in the path, without an ending too."""
    assert unsigned_url("https://h.example/o/a%2Fposter?alt=media&token=1") == (
        "https://h.example/o/a%2Fposter?alt=media"
    )


@pytest.mark.parametrize(
    "url",
    [
        f"{FILE}#1",
        f"{FILE}?",
        "HTTPS://Bucket.Example/a/poster.jpg",
        "https://bucket.example/%61/%70oster%2ejpg",
        f"{FILE}#X-Amz-Signature=1",
    ],
)
def test_spellings_of_one_address_are_one_image(url: str) -> None:
    """A fragment, the case of the host and an unnecessary escape distinguish no files."""
    assert unsigned_url(url) == bare_url(url) == FILE
    assert is_resigned(url, FILE)


def test_spellings_that_a_server_may_distinguish_are_kept() -> None:
    """The case of the path, an escaped slash, a plus; only the digits of an escape have one case."""
    assert unsigned_url("https://h.example/A%2fb+c?Q=1") == "https://h.example/A%2Fb+c?Q=1"
    assert unsigned_url("https://h.example?Q=1") == "https://h.example?Q=1"
    assert unsigned_url("https://h.example/\u00e9.jpg") == "https://h.example/%C3%A9.jpg"
    assert unsigned_url("no address") == "no address"
    assert bare_url("https://h.example/a.jpg?id=17#x") == "https://h.example/a.jpg"
