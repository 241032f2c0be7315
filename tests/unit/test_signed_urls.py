"""Signatures in addresses: what a store signs anew each day is one file, what names a file is not."""

from __future__ import annotations

import pytest

from flux_async.policy.signed_urls import is_resigned, unsigned_url

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
    ],
)
def test_signatures_of_the_usual_stores_are_left_out(query: str, kept: str) -> None:
    """What tells one file from another stays, as it was written."""
    assert unsigned_url(f"{FILE}?{query}") == FILE + kept


@pytest.mark.parametrize(
    "url",
    [
        FILE,
        f"{FILE}?",
        f"{FILE}?v=2",
        "https://h.example/image.php?id=17",
        "https://h.example/weather?st=ny&se=1",  # Azure's short names, without a signature
        "https://h.example/download?token=17",  # the token is the file's name
        "https://h.example/a.jpg#X-Amz-Signature=1",
    ],
)
def test_an_address_without_a_signature_is_left_as_it_is(url: str) -> None:
    """Nothing to leave out: two such addresses are two images."""
    assert unsigned_url(url) is None


def test_addresses_that_differ_only_in_their_signatures_are_one_image() -> None:
    """Signed today, signed yesterday, not signed: the same; another file or version: not the same."""
    signed = f"{FILE}?X-Amz-Signature="
    assert is_resigned(f"{signed}1", f"{signed}2")
    assert is_resigned(FILE, f"{signed}2")
    assert not is_resigned(f"{signed}1", f"{signed}1")
    assert not is_resigned(f"{signed}1", f"{FILE}?X-Amz-Signature=1&v=2")
    assert not is_resigned("https://h.example/i.php?id=17", "https://h.example/i.php?id=18")
