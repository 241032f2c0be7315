"""Addresses that a download may connect to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from flux_async import AddressForbidden, DownloadError, InvalidInput
from flux_async.policy.hosts import AddressKind, kind_of, literal, may_be_public
from flux_async.transport.ssrf_guard import AddressGuard, ParsedUrl, look_up

PUBLIC = ["93.184.216.34", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"]
PUBLIC_INSIDE = ["::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"]
SPECIAL = {
    AddressKind.LOOPBACK: ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
    AddressKind.PRIVATE: [
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "fd12::1",
        "::ffff:10.0.0.1",
        "2002:a00:1::",
        "2002:c0a8:101::1",
    ],
    AddressKind.SHARED: ["100.64.0.1", "100.127.255.255"],
    AddressKind.LINK_LOCAL: ["169.254.1.1", "fe80::1"],
    AddressKind.METADATA: [
        "169.254.169.254",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
    ],
    AddressKind.BENCHMARK: ["198.18.0.1", "198.19.255.255"],
    AddressKind.MULTICAST: ["224.0.0.1", "239.255.255.250", "ff02::1"],
    AddressKind.UNSPECIFIED: ["0.0.0.0", "0.1.2.3", "::"],
    AddressKind.RESERVED: [
        "192.0.0.8",
        "192.0.2.1",
        "203.0.113.9",
        "240.0.0.1",
        "255.255.255.255",
        "2001:db8::1",
        "2001::1",
        "64:ff9b:1::1",
        "::7f00:1",
        "fec0::1",
        "4000::1",
    ],
}


@pytest.mark.parametrize("text", PUBLIC + PUBLIC_INSIDE)
def test_public_addresses_have_no_kind(text: str) -> None:
    """Global addresses."""
    assert kind_of(ipaddress.ip_address(text)) is None


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in SPECIAL for text in SPECIAL[kind]])
def test_special_addresses_have_a_kind(kind: AddressKind, text: str) -> None:
    """Also addresses that embed another one."""
    assert kind_of(ipaddress.ip_address(text)) is kind


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("::ffff:7f00:1", "::ffff:7f00:1"),
        ("files.example", None),
        ("cafe.be", None),
        ("1.2.3.4.5", None),
    ],
)
def test_an_address_is_known_in_every_spelling(host: str, address: str | None) -> None:
    """Decimal, octal, hexadecimal and shortened forms."""
    assert literal(host) == (ipaddress.ip_address(address) if address else None)


@pytest.mark.parametrize(
    ("host", "public"),
    [("api.kie.ai", True), ("Files.Example.", True), ("1.1.1.1", True), ("[", False), ("::1", False)]
    + [(host, False) for host in ("localhost", "nas.LOCAL", "intranet.", "10.0.0.1", "0x7f.1", "")],
)
def test_a_host_may_be_public_by_its_name_or_number(host: str, public: bool) -> None:
    """Names of private networks and addresses that are not routed are not public."""
    assert may_be_public(host) is public


def guard(
    api_host: str, *found: str, is_public: bool = False, api_is_at: Sequence[str] | None = None
) -> AddressGuard:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if host == api_host and api_is_at is not None:
            return api_is_at
        if not found:
            raise OSError("no such name")
        return found

    return AddressGuard(api_host, is_public=is_public, resolve=resolve)


@pytest.mark.parametrize("kind", SPECIAL)
async def test_special_addresses_are_forbidden(kind: AddressKind) -> None:
    """As a literal, behind a name, alone or beside a public address."""
    for text in SPECIAL[kind]:
        with pytest.raises(AddressForbidden, match=kind.value.partition(" ")[0]):
            await guard("api.kie.ai", is_public=True).addresses_of(text, 80)
        for found in ([text], ["1.1.1.1", text]):
            with pytest.raises(AddressForbidden, match="resolves to"):
                world = guard("api.kie.ai", *found, is_public=True, api_is_at=["1.1.1.1"])
                await world.addresses_of("files.example", 80)


@pytest.mark.parametrize(
    ("api_host", "allowed"),
    [
        ("127.0.0.1", AddressKind.LOOPBACK),
        ("localhost", AddressKind.LOOPBACK),
        ("::1", AddressKind.LOOPBACK),
        ("192.168.7.7", AddressKind.PRIVATE),
        ("100.64.3.3", AddressKind.SHARED),
        ("198.18.0.9", AddressKind.BENCHMARK),
        ("169.254.7.7", None),
        ("169.254.169.254", None),
        ("0.0.0.0", None),
        ("93.184.216.34", None),
    ],
)
async def test_only_addresses_of_the_apis_kind_are_allowed(
    api_host: str, allowed: AddressKind | None
) -> None:
    """Results of a local sandbox can be on the same machine, and in no other private network."""
    for kind, texts in SPECIAL.items():
        for text in texts:
            if kind is allowed:
                allowed_now = await guard(api_host).addresses_of(text, 80)
                assert allowed_now == [str(ipaddress.ip_address(text))]
            else:
                with pytest.raises(AddressForbidden):
                    await guard(api_host).addresses_of(text, 80)


async def test_the_kind_of_a_named_api_is_resolved() -> None:
    """Results of ``http://sandbox:8000`` can be in its network; a name with two kinds allows none."""
    assert await guard("sandbox", "172.18.0.2").addresses_of("sandbox", 8000) == ["172.18.0.2"]
    for found in (["172.18.0.2", "127.0.0.1"], ["172.18.0.2", "1.1.1.1"]):
        with pytest.raises(AddressForbidden):
            await guard("sandbox", *found).addresses_of("sandbox", 8000)
    with pytest.raises(AddressForbidden):
        await guard("sandbox").addresses_of("10.0.0.1", 80)


async def test_a_vpn_that_resolves_every_name_is_allowed() -> None:
    """The vendor's name resolves into the benchmark range: so can results; other ranges stay forbidden."""
    vpn = guard("api.kie.ai", "198.18.0.7", is_public=True)
    assert await vpn.addresses_of("files.example", 443) == ["198.18.0.7"]
    hijacked = guard("api.kie.ai", "10.0.0.1", is_public=True)
    with pytest.raises(AddressForbidden):
        await hijacked.addresses_of("files.example", 443)


async def test_a_name_without_address_is_an_os_error() -> None:
    """Like the system's resolver."""

    async def nothing(host: str, port: int) -> Sequence[str]:
        return []

    with pytest.raises(OSError, match="no address"):
        await AddressGuard("h", resolve=nothing).addresses_of("files.example", 80)


async def test_the_default_resolver_is_the_systems() -> None:
    """The name of the machine itself."""
    assert {"127.0.0.1", "::1"} & set(await look_up("localhost", 80))


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "2130706433",
        "127.0.0.1.",
        "localhost",
        "a.localhost",
        "db",
        "x.internal",
        "nas.local",
    ],
)
async def test_a_proxy_is_not_used_for_private_hosts(host: str) -> None:
    """Literal addresses in any form, and names of private networks."""
    with pytest.raises(AddressForbidden):
        await guard("api.kie.ai", is_public=True).check_for_proxy(host)


async def test_a_proxy_is_used_for_other_hosts() -> None:
    """The proxy resolves them; the API's own name is given by the caller."""
    await guard("api.kie.ai", is_public=True).check_for_proxy("files.example")
    await guard("api.kie.ai", is_public=True).check_for_proxy("1.1.1.1")
    await guard("sandbox").check_for_proxy("sandbox")


# --- addresses as text ------------------------------------------------------------------------------------


def test_a_url_is_parsed_into_its_parts() -> None:
    """It has scheme, host, port and target; a password is dropped."""
    hop = ParsedUrl.read(
        "https://user:secret@Files.Example/ab%20c/\N{LATIN SMALL LETTER E WITH ACUTE}?q=1&r=<>#p"
    )
    assert (hop.scheme, hop.host, hop.port) == ("https", "files.example", 443)
    assert hop.target == b"/ab%20c/%C3%A9?q=1&r=%3C%3E"
    assert hop.authority == "files.example"
    assert "secret" not in repr(hop)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://h:80/x", "h"),
        ("http://h:8080", "h:8080"),
        ("https://h:80", "h:80"),
        ("http://[::1]:9/", "[::1]:9"),
        ("http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/", "xn--bcher-kva.example"),
        ("http://\N{FULLWIDTH DIGIT ONE}27.0.0.1/", "127.0.0.1"),
        ("http://files.example\\@127.0.0.1/", "files.example"),
    ],
)
def test_the_host_is_the_one_that_is_connected_to(url: str, authority: str) -> None:
    """Unusual URLs included."""
    assert ParsedUrl.read(url).authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "http://[fe80::1%25eth0]/",
        "http://a\N{SNOWMAN}b..c/",
        "http://a%00b/",
        "http://a,b/",
        "http://stra\N{LATIN SMALL LETTER SHARP S}e.example/",
        "http://a b/",
    ],
)
def test_an_invalid_host_is_refused(url: str) -> None:
    """Scopes, escapes and commas are invalid in a host name."""
    with pytest.raises((DownloadError, InvalidInput)):
        ParsedUrl.read(url)


@pytest.mark.parametrize(
    ("start", "location", "url"),
    [
        ("https://a/x/y?z", "w?v", "https://a/x/w?v"),
        ("https://a/x", "//b/c", "https://b/c"),
        ("http://a/x", "https://b/", "https://b/"),
        ("http://a/x", "http://b/", "http://b/"),
        ("http://a/x", "../../../../etc/passwd", "http://a/etc/passwd"),
        ("https://a/x", "/a b", "https://a/a%20b"),
        ("https://a/x", '  /\N{LATIN SMALL LETTER E WITH ACUTE}?a=" #f g', "https://a/%C3%A9?a=%22%20#f%20g"),
        ("https://a/x", "/%2F%27%7E", "https://a/%2F%27%7E"),
        ("https://a/x", "https://b/c d?e f", "https://b/c%20d?e%20f"),
    ],
)
def test_redirects_are_followed(start: str, location: str, url: str) -> None:
    """Relative ones included."""
    assert ParsedUrl.read(start).follow(location).url == url


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///etc/passwd", "'file', which is neither"),
        ("ftp://b/", "'ftp', which is neither"),
        ("data:image/png;base64,AAAA", "'data', which is neither"),
        ("http://b/", "from https to http"),
        ("https://[broken", "invalid address"),
        ("https://h:99999/", "invalid address"),
        ("//a b/", "invalid address"),
    ],
)
def test_other_redirects_are_refused(location: str, says: str) -> None:
    """Other schemes, https to http, and invalid addresses."""
    with pytest.raises(AddressForbidden, match=says):
        ParsedUrl.read("https://a/x").follow(location)
