"""The API key, and the addresses it is sent to."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable

import pytest

from flux_async import ConfigurationError
from flux_async.api.envelope import Host, WireRequest
from flux_async.transport.credentials import Credentials

KEY = "k-0123456789abcdef"


def test_the_key_goes_to_its_origin_only() -> None:
    """Scheme, host and port must all be the configured ones; letter case and default ports do not matter."""
    origin = Credentials(KEY, "https://API.kie.ai/")
    assert origin.authorization_for("https://api.kie.ai:443/x") == {"Authorization": f"Bearer {KEY}"}
    for foreign in (
        "http://api.kie.ai/x",
        "https://api.kie.ai:444/x",
        "https://api.kie.ai.evil.example/x",
        "https://tempfile.example.com/r.jpg",
        "https://api.kie.ai@evil.example/x",
    ):
        assert origin.authorization_for(foreign) == {}


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("key", [KEY, "k/?~>>?~k/?~>>?~k"])
@pytest.mark.parametrize("words", ["%s", "Bearer %s", "Authorization: Bearer %s\r\nHost: h", "a%sb", "ab%s"])
def test_a_key_echoed_in_base64_is_scrubbed(words: str, key: str, encode: Callable[[bytes], bytes]) -> None:
    """At every position of the key in the encoded text; only its first and last letter may remain."""
    packed = encode((words % key).encode())
    for said in (packed, packed.replace(b"/", rb"\/")):
        left = Credentials(key, None).scrub(b'{"seen":"' + said + b'"}')
        assert b"***" in left
        assert len(left) <= len(said) + 11 + 3 - (len(key) * 8 // 6 - 2)


def test_a_key_echoed_in_other_forms_is_scrubbed() -> None:
    """UTF-16 and percent-encoding."""
    assert Credentials(KEY, None).scrub(KEY.encode("utf-16-be")) == b"***"
    assert Credentials(KEY, None).scrub(KEY.encode("utf-16-le")) == b"***"
    assert Credentials("abc/def+ghi=jkl%mno", None).scrub(b"?k=abc%2Fdef%2Bghi%3Djkl%25mno&") == b"?k=***&"


@pytest.mark.parametrize("key", [None, "", "  \n"])
def test_a_missing_key_names_the_variable(key: str | None) -> None:
    """The message names KIE_API_KEY."""
    with pytest.raises(ConfigurationError, match="KIE_API_KEY"):
        Credentials(key, None)


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel", "a\x00b"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    """The message does not contain the key."""
    with pytest.raises(ConfigurationError) as caught:
        Credentials(key, None)
    assert key not in str(caught.value)


def test_a_key_is_stripped() -> None:
    """A trailing newline from a secrets file is removed."""
    assert (
        Credentials(f" {KEY}\r\n", None)
        .authorization_for("https://api.kie.ai/")["Authorization"]
        .endswith(KEY)
    )


def test_the_key_is_not_shown_and_not_pickled() -> None:
    """It is neither in repr nor in a pickle, and an echo is scrubbed in every JSON form."""
    origin = Credentials(KEY, "http://127.0.0.1:8787")
    assert KEY not in repr(origin)
    assert origin.scrub(f"sent {KEY}!".encode()) == b"sent ***!"
    assert Credentials("abc/def/ghi/jkl/mno", None).scrub(rb"abc\/def\/ghi\/jkl\/mno") == b"***"
    with pytest.raises(ConfigurationError):
        pickle.dumps(origin)


def test_a_key_as_short_as_the_sandboxs_is_not_scrubbed() -> None:
    """The key ``test`` occurs in task ids and URLs, which must not change."""
    assert Credentials("test", None).scrub(b"https://h/tests/contest.jpg") == b"https://h/tests/contest.jpg"


@pytest.mark.parametrize("bad", [7, b"key", ["key"], object()])
def test_settings_of_another_type_are_refused(bad: object) -> None:
    """Keys and addresses that are no strings raise ConfigurationError."""
    with pytest.raises(ConfigurationError, match="key"):
        Credentials(bad, None)
    with pytest.raises(ConfigurationError, match="KIE_BASE_URL"):
        Credentials(KEY, bad)


def test_a_password_in_the_base_url_is_not_shown() -> None:
    """It is refused, and the message does not contain it."""
    with pytest.raises(ConfigurationError) as caught:
        Credentials(KEY, "https://user:s3cret@api.kie.ai")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "api.kie.ai",
        "ftp://api.kie.ai",
        "https://u:p@api.kie.ai",
        "https://api.kie.ai?x=1",
        "https://",
        "h\nx",
    ],
)
def test_an_invalid_base_url_is_refused(url: str) -> None:
    """A missing scheme, a user name or a query raises ConfigurationError."""
    with pytest.raises(ConfigurationError, match="KIE_BASE_URL"):
        Credentials(KEY, url)


@pytest.mark.parametrize("empty", ["", "  \n"])
@pytest.mark.parametrize("name", ["KIE_API_KEY", "KIE_BASE_URL", "KIE_UPLOAD_URL"])
@pytest.mark.parametrize("is_argument", [True, False])
def test_an_empty_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, empty: str, is_argument: bool
) -> None:
    """As an argument and in the environment: it never stands for the default, which is the vendor's API."""
    values = {
        "KIE_API_KEY": KEY,
        "KIE_BASE_URL": "http://127.0.0.1:1",
        "KIE_UPLOAD_URL": "http://127.0.0.1:1",
    }
    for variable, value in values.items():
        monkeypatch.setenv(variable, value if is_argument or variable != name else empty)
    arguments = [empty if is_argument and variable == name else None for variable in values]
    with pytest.raises(ConfigurationError, match=name):
        Credentials.find(*arguments)


@pytest.mark.parametrize(
    "url", ["https://api.kie.ai", "https://api.kie.ai/", "https://api.kie.ai/api/v1/flux/kontext", None]
)
def test_the_base_url_of_the_api_page_works(url: str | None) -> None:
    """The API page's base URL can be pasted with its path."""
    request = WireRequest(method="GET", path="/api/v1/chat/credit")
    assert Credentials(KEY, url).url_for(request) == "https://api.kie.ai/api/v1/chat/credit"


@pytest.mark.parametrize(
    ("url", "clear"),
    [("http://127.0.0.1:1", False), ("http://localhost", False), ("http://kie.example", True), (None, False)],
)
def test_plain_http_is_reported_outside_this_machine(url: str | None, clear: bool) -> None:
    """The key crosses a network unencrypted only with plain http to another host."""
    assert bool(Credentials(KEY, url).in_clear) is clear


@pytest.mark.parametrize(
    ("base_url", "upload_url", "expected"),
    [
        (None, None, "https://kieai.redpandaai.co"),
        ("https://API.kie.ai/", None, "https://kieai.redpandaai.co"),
        ("http://127.0.0.1:8787", None, "http://127.0.0.1:8787"),
        ("https://kie.proxy.example/v", None, "https://kie.proxy.example/v"),
        ("http://api.kie.ai", None, "http://api.kie.ai"),
        ("http://127.0.0.1:8787", "https://uploads.example/", "https://uploads.example"),
    ],
)
def test_uploads_go_to_the_vendor_only_with_the_vendors_api(
    base_url: str | None, upload_url: str | None, expected: str
) -> None:
    """The key of a sandbox or proxy is not sent to the vendor's upload host."""
    origin = Credentials(KEY, base_url, upload_url)
    request = WireRequest(method="POST", path="/api/x", host=Host.UPLOADS)
    assert origin.url_for(request) == f"{expected}/api/x"
    assert origin.authorization_for(f"{expected}/api/x") == {"Authorization": f"Bearer {KEY}"}
    if not expected.startswith("https://kieai"):
        assert origin.authorization_for("https://kieai.redpandaai.co/api/x") == {}


def test_the_key_goes_to_two_origins_at_most() -> None:
    """The host of uploaded files and similar names do not receive the key."""
    origin = Credentials(KEY, None)
    for foreign in (
        "https://tempfile.redpandaai.co/kieai/1/a.png",
        "http://kieai.redpandaai.co/",
        "https://kieai.redpandaai.co:444/",
        "https://kieai.redpandaai.co.evil.example/",
    ):
        assert origin.authorization_for(foreign) == {}


@pytest.mark.parametrize("bad", [7, "ftp://h", "https://u:s3cret@h", "https://h?x=1"])
def test_an_invalid_upload_url_is_refused(bad: object) -> None:
    """The message names the setting and contains no password."""
    with pytest.raises(ConfigurationError, match="KIE_UPLOAD_URL") as caught:
        Credentials(KEY, None, bad)
    assert "s3cret" not in str(caught.value)


def test_an_upload_host_over_plain_http_is_reported() -> None:
    """Each address that would receive the key unencrypted is reported once."""
    assert Credentials(KEY, None, "http://up.example").in_clear == ("http://up.example",)
    assert Credentials(KEY, "http://up.example").in_clear == ("http://up.example",)
    assert Credentials(KEY, None, "http://localhost:1").in_clear == ()


def test_the_upload_host_does_not_change_the_fingerprint() -> None:
    """A journal stays usable when the upload host changes."""
    assert Credentials(KEY, None, "https://up.example").fingerprint == Credentials(KEY, None).fingerprint
