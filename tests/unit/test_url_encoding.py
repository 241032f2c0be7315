"""Addresses of results and redirects are percent-encoded as a browser does it."""

from __future__ import annotations

import pytest

from flux_async.api import parsing
from flux_async.api.parsing import encoded_as_by_a_browser


@pytest.mark.parametrize(
    ("given", "encoded"),
    [
        ("https://h/a b.jpg", "https://h/a%20b.jpg"),
        ("https://h/\N{LATIN SMALL LETTER E WITH ACUTE}/\N{SNOWMAN}", "https://h/%C3%A9/%E2%98%83"),
        ("https://h/%2F%27%7E%zz%?q=%2F%27%7E%zz%", "https://h/%2F%27%7E%zz%?q=%2F%27%7E%zz%"),
        ("https://h/%2f%c3%a9", "https://h/%2f%c3%a9"),
        ("https://h/\"<>`{}^|'~[]@:;,+$&=!*()", "https://h/%22%3C%3E%60%7B%7D%5E|'~[]@:;,+$&=!*()"),
        ("https://h/x?\"<>' `{}^|~[]/?@", "https://h/x?%22%3C%3E%27%20`{}^|~[]/?@"),
        ("https://h/x?a=\N{LATIN SMALL LETTER E WITH ACUTE}&b=c d", "https://h/x?a=%C3%A9&b=c%20d"),
        ('https://h/x#a b`<>"', "https://h/x#a%20b%60%3C%3E%22"),
        ("https://h?a b", "https://h?a%20b"),
        ("https://h/x?", "https://h/x?"),
        ("  https://h/a\tb\nc \x00", "https://h/abc"),
        ("https://h/\x01\x7f", "https://h/%01%7F"),
        ("https://h\\a\\b?c\\d", "https://h/a/b?c\\d"),
        ("https://h/\ud83d", "https://h/%EF%BF%BD"),
        ("HTTPS://user:p@H:80/a b", "HTTPS://user:p@H:80/a%20b"),
        ("http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/a b", "http://b\xfccher.example/a%20b"),
        ("javascript:alert(' ')", "javascript:alert(' ')"),
        ("ftp://h/a b", "ftp://h/a b"),
        ("no address", "no address"),
    ],
)
def test_what_a_browser_escapes_is_escaped_and_nothing_twice(given: str, encoded: str) -> None:
    """Escapes that are there stay byte for byte; what is no http(s) address is left alone."""
    assert encoded_as_by_a_browser(given) == encoded
    assert encoded_as_by_a_browser(encoded) == encoded


@pytest.mark.parametrize(
    ("given", "link"),
    [
        ("https://h/my poster.jpg", "https://h/my%20poster.jpg"),
        ("https://h/%2F%27%7E.jpg?s=%2B+/=", "https://h/%2F%27%7E.jpg?s=%2B+/="),
        ("https:// h/x", None),
        ("javascript:alert(1)", None),
        ("", None),
    ],
)
def test_a_record_may_name_its_result_with_raw_spaces(given: str, link: str | None) -> None:
    """A paid result is fetched even if the vendor did not escape its address."""
    assert parsing.link(given) == link
