"""Which image addresses are refused, which are warned about, and which pass."""

from __future__ import annotations

import pytest

from flux_async import EditRequest, GenerateRequest, InvalidInput, LocalImage
from flux_async.policy.image_urls import (
    check_reachable,
    direct_form,
    mistyped_in_words,
    suspicion,
    with_scheme,
    without_trailing_marks,
)

VENDOR = "api.kie.ai"

UNREACHABLE = {
    "http://127.0.0.1/a.jpg": "loopback",
    "http://2130706433/a.jpg": "loopback",
    "http://0x7f.1/a.jpg": "loopback",
    "http://[::1]/a.jpg": "loopback",
    "http://[::ffff:10.0.0.1]/a.jpg": "private",
    "https://192.168.1.7:8443/a.jpg": "private",
    "http://10.0.0.1/a.jpg": "private",
    "http://172.31.0.1/a.jpg": "private",
    "http://169.254.169.254/a.jpg": "metadata",
    "http://169.254.3.3/a.jpg": "link-local",
    "http://100.64.1.1/a.jpg": "carrier-grade",
    "http://0.0.0.0/a.jpg": "unspecified",
    "http://localhost/a.jpg": "private network",
    "http://localhost.:8000/a.jpg": "private network",
    "http://app.localhost/a.jpg": "private network",
    "http://NAS.local/a.jpg": "private network",
    "http://files.internal/a.jpg": "private network",
    "http://router.lan/a.jpg": "private network",
    "http://intranet/a.jpg": "private network",
    "http://pics..example.com/a.jpg": "not a valid host name",
    "http://.example.com/a.jpg": "not a valid host name",
    "http://exa,mple.com/a.jpg": "not a valid host name",
    "http://exa%20mple.com/a.jpg": "not a valid host name",
    'http://"example.com/a.jpg': "not a valid host name",
    "http://999.1.1.1/a.jpg": "not a valid host name",
    "http://1.2.3.4.5/a.jpg": "not a valid host name",
    f"http://{'x' * 64}.com/a.jpg": "not a valid host name",
    f"http://{'x.' * 127}com/a.jpg": "not a valid host name",
}
REACHABLE = [
    "https://pics.example.com/a.jpg",
    "https://pics.example.com./a.jpg",
    "http://93.184.216.34/a.jpg",
    "http://[2606:4700::1111]/a.jpg",
    "https://my_bucket.s3.amazonaws.com/a.jpg",
    "https://odd-.tumblr.com/a.jpg",
    "https://b\u00fccher.example/a.jpg",
    "https://xn--bcher-kva.example/a.jpg",
    "https://user@cdn.example.com/a.jpg",
    "https://res.cloudinary.com/demo/image/upload/w_200,h_300/a.jpg",
    "https://proxy.example.com/?url=http://127.0.0.1/a.jpg",
    "https://drive.google.com/uc?export=download&id=abc",
    "https://drive.google.com/thumbnail?id=abc&sz=w1000",
    "https://drive.google.com/open",
    "https://www.dropbox.com/s/abc/a.jpg?dl=1",
    "https://www.dropbox.com/s/abc/a.jpg?raw=1",
    "https://dl.dropboxusercontent.com/s/abc/a.jpg",
    "https://www.dropbox.com/static/a.jpg",
    "https://github.com/o/r/blob/main/a.png?raw=true",
    "https://github.com/o/r/raw/main/a.png",
]
PAGES = {
    "https://drive.google.com/file/d/1aB_-9/view?usp=sharing": (
        "https://drive.google.com/uc?export=download&id=1aB_-9"
    ),
    "https://drive.google.com/file/d/1aB/view": "https://drive.google.com/uc?export=download&id=1aB",
    "https://drive.google.com/file/u/0/d/1aB/edit": "https://drive.google.com/uc?export=download&id=1aB",
    "https://drive.google.com/file/d/1aB": "https://drive.google.com/uc?export=download&id=1aB",
    "https://drive.google.com/open?id=1aB": "https://drive.google.com/uc?export=download&id=1aB",
    "https://drive.google.com/drive/folders/1aB": "",
    "https://www.dropbox.com/s/abc/a.jpg?dl=0": "https://www.dropbox.com/s/abc/a.jpg?dl=1",
    "https://dropbox.com/s/abc/a.jpg": "https://dropbox.com/s/abc/a.jpg?dl=1",
    "https://www.dropbox.com/scl/fi/x/a.jpg?rlkey=k&dl=0#p": (
        "https://www.dropbox.com/scl/fi/x/a.jpg?rlkey=k&dl=1"
    ),
    "https://github.com/o/r/blob/main/d/a.png": "https://raw.githubusercontent.com/o/r/main/d/a.png",
}


@pytest.mark.parametrize("url", UNREACHABLE)
def test_an_address_that_no_public_server_reaches_is_refused_beside_the_vendor(url: str) -> None:
    """Loopback, private, link-local, names in private networks, invalid hosts: with the reason."""
    with pytest.raises(InvalidInput, match=UNREACHABLE[url]) as refused:
        check_reachable(url, api_host=VENDOR)
    assert "Nothing was sent" in str(refused.value)


@pytest.mark.parametrize("url", [*UNREACHABLE, *PAGES])
@pytest.mark.parametrize("api_host", ["127.0.0.1", "localhost", "192.168.3.3", "sandbox", "::1"])
def test_beside_an_api_in_a_private_network_nothing_is_refused(url: str, api_host: str) -> None:
    """A sandbox reaches what this machine and its network reach."""
    check_reachable(url, api_host=api_host)


@pytest.mark.parametrize("url", REACHABLE)
@pytest.mark.parametrize("api_host", [VENDOR, "93.184.216.34"])
def test_addresses_that_may_be_reachable_pass(url: str, api_host: str) -> None:
    """A possibly valid address is not refused; the contents of a query do not count."""
    check_reachable(url, api_host=api_host)


@pytest.mark.parametrize("url", PAGES)
def test_a_share_page_is_refused_with_the_direct_address(url: str) -> None:
    """The vendor would fetch a web page; the address of the image itself is named where it is known."""
    assert direct_form(url) == PAGES[url]
    with pytest.raises(InvalidInput, match="a page around an image") as refused:
        check_reachable(url, api_host=VENDOR)
    assert (PAGES[url] or "the address of the file itself") in str(refused.value)
    if PAGES[url]:
        check_reachable(PAGES[url], api_host=VENDOR)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("https://h.com/a.jpg?x=1&amp;y=2", "https://h.com/a.jpg?x=1&y=2"),
        ("https://h.com/a.jpg,", "https://h.com/a.jpg"),
        ("https://h.com/a.jpg).", "https://h.com/a.jpg"),
        ('https://h.com/a.jpg";', "https://h.com/a.jpg"),
        ("https://h.com/a.jpg>", "https://h.com/a.jpg"),
        ("https://photos.app.goo.gl/abc", ""),
        ("https://h.com/a_(film)", None),
        ("https://h.com/a.jpg?x=[1]", None),
        ("https://h.com/a.jpg", None),
        ("https://h.com/", None),
    ],
)
def test_mistyped_addresses_are_named_with_their_correction(url: str, meant: str | None) -> None:
    """HTML escapes and punctuation of the sentence around an address; a warning, never a refusal."""
    found = suspicion(url)
    assert (found and found[1]) == meant
    check_reachable(url, api_host=VENDOR)


def test_punctuation_alone_leaves_nothing() -> None:
    """There is no address in it."""
    assert without_trailing_marks(",;.") == ""


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("example.com/a.jpg", "https://example.com/a.jpg"),
        ("example.com:8443/a", "https://example.com:8443/a"),
        ("//cdn.example.com/a.jpg", "https://cdn.example.com/a.jpg"),
        ("www.example.com", "https://www.example.com"),
        ("https:/example.com/a.jpg", "https://example.com/a.jpg"),
        ("HTTP:example.com/a.jpg", "http://example.com/a.jpg"),
        ("poster.jpg", None),
        ("photos/poster.jpg", None),
        ("//server", None),
        ("nonsense", None),
        ("https://example.com/a.jpg", None),
    ],
)
def test_an_address_without_its_scheme_is_recognised(text: str, meant: str | None) -> None:
    """For a hint; the name of a file is none."""
    assert with_scheme(text) == meant


def test_the_warning_for_a_log_holds_no_query() -> None:
    """Queries sign for access."""
    words = mistyped_in_words(EditRequest.text_removal("https://h.com/a.jpg?sig=secret&amp;x=1"))
    assert (
        words
        == "The address https://h.com/a.jpg looks mistyped: it contains '&amp;', as web pages write '&'."
    )
    for well in (
        EditRequest.text_removal("https://h.com/a.jpg"),
        EditRequest.text_removal(LocalImage(path="a.jpg,")),
        GenerateRequest(prompt="a cat"),
    ):
        assert mistyped_in_words(well) is None
