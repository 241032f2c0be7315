"""Callbacks as values: addresses, signatures, bodies, and hostile input."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async.api.webhooks import (
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    CallbackEndpoint,
    attempt_in,
    check_keys,
    parse,
    read_callback,
    sign,
    signature_of,
    verify,
)
from flux_async.errors import CallbackRejected, InvalidInput

KEY = "test-webhook-key"
AT = 1769670760
VECTORS = {
    # Computed elsewhere, with another program.
    "task12345": "j3ngumcFdjBvBIReb1zSLGr3F1geqRahGXHkwJv/UVo=",
    "e730dcfe4e5d59332daf52c08a960085": "MTikmZdXH4EBXUUsYkviuKcK8EtghrGJajVOrRUpJDE=",
}
ATTEMPT = "0123456789abcdef" * 2
DOCUMENTED = {
    # API page, "Callback Format", and the vendor's page "Callbacks".
    "success": {
        "code": 200,
        "msg": "BFL image generated successfully.",
        "data": {
            "taskId": "task12345",
            "info": {
                "originImageUrl": "https://example.com/o.jpg",
                "resultImageUrl": "https://example.com/r.jpg",
            },
        },
    },
    "refused": {
        "code": 400,
        "msg": "Your prompt was flagged by Website as violating content policies.",
        "data": {"taskId": "task12345", "info": {"originImageUrl": "", "resultImageUrl": ""}},
    },
    "internal": {
        "code": 500,
        "msg": "Internal Error, Please try again later.",
        "data": {"taskId": "task12345"},
    },
    "failed": {
        "code": 501,
        "msg": "Image generation task failed",
        "data": {"taskId": "task12345", "info": None},
    },
    "market": {"taskId": "task12345", "code": 200, "msg": "Success", "data": {"task_id": "task12345"}},
}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def of(task_id: str = "task12345", **more: Any) -> bytes:
    return encoded({"code": 200, "msg": "ok", "data": {"taskId": task_id}} | more)


# --- signatures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", VECTORS)
def test_known_signatures(task_id: str) -> None:
    """A signature is Base64 of HMAC-SHA256 over task id, full stop, timestamp."""
    assert signature_of(task_id, str(AT), KEY) == VECTORS[task_id]
    assert signature_of(task_id, str(AT), KEY.encode()) == VECTORS[task_id]
    assert sign(task_id, KEY, at=AT + 0.9) == {TIMESTAMP_HEADER: str(AT), SIGNATURE_HEADER: VECTORS[task_id]}


@pytest.mark.parametrize("task_id", VECTORS)
def test_known_signatures_are_verified(task_id: str) -> None:
    """What was signed with the key verifies, and for no other task, key or time."""
    headers = {TIMESTAMP_HEADER: str(AT), SIGNATURE_HEADER: VECTORS[task_id]}
    verify(headers, task_id, [KEY.encode()], now=AT)
    for name, keys, at in [("other", [KEY], AT), (task_id, ["other"], AT), (task_id, [KEY], AT + 301)]:
        with pytest.raises(CallbackRejected) as rejected:
            verify(headers, name, keys, now=at)
        assert rejected.value.http_status == 401


@pytest.mark.parametrize(
    "spell",
    [
        lambda h: {name.lower(): value for name, value in h.items()},
        lambda h: {name.upper(): value for name, value in h.items()},
        lambda h: {name: f"  {value} " for name, value in h.items()},
        lambda h: [(name.lower().encode(), value.encode()) for name, value in h.items()],
        lambda h: ((name.encode(), value.encode()) for name, value in h.items()),
    ],
    ids=["lower", "upper", "spaces", "asgi", "once"],
)
def test_headers_in_any_form(spell: Any) -> None:
    """Header names have no case; headers may come as a mapping, as pairs of bytes, or readable only once."""
    verify(spell(sign("t", KEY, at=AT)), "t", [KEY], now=AT)


@pytest.mark.parametrize("name", [TIMESTAMP_HEADER, SIGNATURE_HEADER])
def test_a_repeated_header_counts_as_absent(name: str) -> None:
    """None of its values is chosen."""
    right = sign("t", KEY, at=AT)
    pairs = [(key.encode(), value.encode()) for key, value in right.items()]
    twice = [*pairs, (name.lower().encode(), right[name].encode())]
    without = {key: value for key, value in right.items() if key != name}
    for headers in (twice, without, {}, []):
        with pytest.raises(CallbackRejected, match="no usable") as rejected:
            verify(headers, "t", [KEY], now=AT)
        assert rejected.value.http_status == 401


@pytest.mark.parametrize("offset", [-300.0, 0.0, 300.0])
def test_the_window_includes_its_edges(offset: float) -> None:
    """300 s early or late is in time."""
    verify(sign("t", KEY, at=AT), "t", [KEY], now=AT + offset)


@pytest.mark.parametrize("offset", [-300.001, 300.001, 1e9, -1e9])
def test_outside_of_the_window(offset: float) -> None:
    """More than 300 s early or late is rejected, though the signature is right."""
    with pytest.raises(CallbackRejected, match="too far from our clock"):
        verify(sign("t", KEY, at=AT), "t", [KEY], now=AT + offset)


@pytest.mark.parametrize(
    "timestamp",
    ["", "now", "-1", "+1769670760", "1769670760.0", "1e9", "0x10", "1_7", "9" * 13, "9" * 5000, "١٧٦", "²"],
)
def test_junk_for_a_timestamp(timestamp: str) -> None:
    """Only up to twelve decimal digits are a timestamp, however well the rest is signed."""
    headers = {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature_of("t", timestamp, KEY)}
    with pytest.raises(CallbackRejected, match="no usable"):
        verify(headers, "t", [KEY], now=AT)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "=",
        "not base64!",
        "äöü",
        VECTORS["task12345"][:-4],
        VECTORS["task12345"][:-1],
        VECTORS["task12345"] + "AAAA",
        base64.b64decode(VECTORS["task12345"]).hex(),
        VECTORS["task12345"].replace("/", "_"),
        "sha256=" + VECTORS["task12345"],
    ],
)
def test_junk_for_a_signature(signature: str) -> None:
    """Only Base64 of 32 bytes is a signature."""
    headers = {TIMESTAMP_HEADER: str(AT), SIGNATURE_HEADER: signature}
    with pytest.raises(CallbackRejected) as rejected:
        verify(headers, "task12345", [KEY], now=AT)
    assert rejected.value.http_status == 401


def test_one_key_replaces_another() -> None:
    """While several keys are valid, whichever of them signed is right; one that is gone is not."""
    for key in ("old", "new"):
        verify(sign("t", key, at=AT), "t", ["old", b"new"], now=AT)
    with pytest.raises(CallbackRejected, match="does not match"):
        verify(sign("t", "gone", at=AT), "t", ["old", "new"], now=AT)
    with pytest.raises(CallbackRejected, match="does not match"):
        verify(sign("t", KEY, at=AT), "t", [], now=AT)


def test_a_string_is_one_key() -> None:
    """A key given as a bare string is that key, and none of its characters is one."""
    verify(sign("t", "secret", at=AT), "t", "secret", now=AT)
    with pytest.raises(CallbackRejected):
        verify(sign("t", "s", at=AT), "t", "secret", now=AT)
    with pytest.raises(CallbackRejected):
        verify(sign("t", b"s", at=AT), "t", b"secret", now=AT)


# --- bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_bodies(name: str) -> None:
    """Each documented body is read, without its image addresses."""
    body = DOCUMENTED[name]
    event = parse(encoded(body), attempt_id=ATTEMPT)
    assert (event.task_id, event.code, event.message) == ("task12345", body["code"], body["msg"])
    assert (event.attempt_id, event.signed) == (ATTEMPT, False)
    assert "example.com" not in repr(event)


PLACES: list[Any] = [
    {"data": {"taskId": "t"}},
    {"data": {"task_id": "t"}},
    {"taskId": "t"},
    {"task_id": "t"},
    {"taskId": "t", "task_id": "t", "data": {"taskId": "t", "task_id": "t"}},
    {"taskId": "t", "data": None},
    {"taskId": "t", "data": []},
    {"taskId": "t", "data": "text"},
    {"taskId": "", "task_id": None, "data": {"taskId": "t"}},
]


@pytest.mark.parametrize("envelope", PLACES)
def test_the_task_id_is_found_in_each_field(envelope: object) -> None:
    """The task id is found wherever it has been seen, and where it is repeated alike."""
    assert parse(encoded(envelope)).task_id == "t"


def test_a_whole_number_is_a_task_id() -> None:
    """In its decimal digits, as in the answer to a submit."""
    assert parse(encoded({"taskId": 5, "data": {"taskId": "5"}})).task_id == "5"


@pytest.mark.parametrize(
    "envelope",
    [
        {},
        {"data": {}},
        {"taskId": ""},
        {"taskId": None},
        {"taskId": 0},
        {"taskId": 5.5},
        {"taskId": 5, "task_id": "6"},
        {"taskId": ["t"]},
        {"taskId": {"t": 1}},
        {"taskId": True, "data": {"taskId": "t"}},
        {"taskId": "a", "task_id": "b"},
        {"taskId": "a", "data": {"taskId": "b"}},
        {"data": {"taskId": "a", "task_id": "b"}},
        {"taskId": "t "},
        {"taskId": "null"},
        {"taskId": "x" * 201},
        {"taskId": "a\nb"},
        {"taskId": "a\x00b"},
        {"taskId": "\ud800"},
        [],
        None,
        5,
        "t",
        [{"taskId": "t"}],
    ],
)
def test_no_single_task_id(envelope: object) -> None:
    """Where there is no task id, an unusable one, or two that differ, the shape is wrong."""
    with pytest.raises(CallbackRejected) as rejected:
        parse(encoded(envelope))
    assert rejected.value.http_status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"taskId":"t"',
        b'{"taskId":"t"}}',
        b"\xff\xfe",
        b"\xff\xfe\x00",
        b"\x80",
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"taskId":"t","code":' + b"9" * 5000 + b"}",
        b"taskId=t",
        b"<taskId>t</taskId>",
    ],
    ids=range(13),
)
def test_no_json(body: bytes) -> None:
    """What is no JSON is rejected, however deep it goes, however long its numbers are."""
    with pytest.raises(CallbackRejected) as rejected:
        parse(body)
    assert rejected.value.http_status == 400


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_of_json(encoding: str) -> None:
    """JSON in another encoding of Unicode is the same callback, which the signature covers as well."""
    body = json.dumps({"data": {"taskId": "t"}}).encode(encoding)
    assert read_callback(sign("t", KEY, at=AT), body, "", [KEY], now=AT).task_id == "t"


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("200", 200),
        (" 501 ", 501),
        (400.0, 400),
        (500, 500),
        (0, 0),
        (None, None),
        (True, None),
        ("OK", None),
        (1.5, None),
        ([], None),
        (-1, None),
        (10_000, None),
        (10**300, None),
        (2**64, None),
        (float("nan"), None),
        (float("inf"), None),
        ("9" * 300, None),
    ],
)
def test_codes(code: object, read: int | None) -> None:
    """A code is a small whole number, also as a string; any other is unreadable, and fits into a journal."""
    assert parse(of(code=code)).code == read


@pytest.mark.parametrize("info", [None, "", {}, [], {"resultImageUrl": ""}, {"resultImageUrl": 5}, "null"])
def test_info_is_not_needed(info: object) -> None:
    """Whatever ``info`` is, the callback means the same."""
    bare = parse(encoded({"code": 200, "data": {"taskId": "t"}}))
    assert parse(encoded({"code": 200, "data": {"taskId": "t", "info": info}})) == bare


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"msg": "a"}, "a"),
        ({"msg": "", "message": "b"}, "b"),
        ({"message": "c"}, "c"),
        ({"msg": 5}, ""),
        ({}, ""),
    ],
)
def test_messages(words: dict[str, object], message: str) -> None:
    """The vendor's message is kept, under either name."""
    assert parse(encoded({"taskId": "t"} | words)).message == message


def test_long_messages_are_cut() -> None:
    """What is kept of a message has an end."""
    assert len(parse(of(msg="x" * 200_000)).message) == 1000


# --- the whole delivery -----------------------------------------------------------------------------------


def test_a_signed_delivery() -> None:
    """A signed delivery names its attempt and is marked as verified."""
    event = read_callback(sign("task12345", KEY, at=AT), of(), f"a=1&c={ATTEMPT}", [KEY], now=AT)
    assert event.signed
    assert event.attempt_id == ATTEMPT


def test_without_keys_nothing_is_verified() -> None:
    """Where there is no key, a delivery counts as unsigned, whatever it is signed with."""
    for keys in ((), None):
        event = read_callback(sign("task12345", KEY, at=AT), of(), b"", keys, now=AT)
        assert not event.signed


def test_shape_comes_before_signature() -> None:
    """A body of no shape is 400 also where nothing is signed; a good one is then 401."""
    for body, status in ((b"", 400), (of(), 401)):
        with pytest.raises(CallbackRejected) as rejected:
            read_callback({}, body, "", [KEY], now=AT)
        assert rejected.value.http_status == status


def test_rejections_contain_no_key() -> None:
    """Neither the key nor the expected signature; and they can be pickled."""
    with pytest.raises(CallbackRejected) as rejected:
        read_callback(sign("task12345", "wrong", at=AT), of(), "", [KEY], now=AT)
    said = str(pickle.loads(pickle.dumps(rejected.value)))
    assert KEY not in said
    assert VECTORS["task12345"] not in said


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("t"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "taskId", "task_id", "code", "msg", "info", "x"]), inner, max_size=5
        )
    ),
    max_leaves=10,
)
_names = st.sampled_from([TIMESTAMP_HEADER.encode(), SIGNATURE_HEADER.lower().encode()]) | st.binary(
    max_size=9
)
_texts = (
    st.binary(max_size=50) | st.just(str(AT).encode()) | st.just(signature_of("t", str(AT), "k").encode())
)


@given(
    body=st.binary(max_size=200)
    | _values.map(encoded)
    | st.text().map(lambda t: t.encode("utf-16", "replace")),
    headers=st.lists(st.tuples(_names, _texts), max_size=5),
    query=st.binary(max_size=80) | st.text(max_size=80) | st.just(f"c={ATTEMPT}"),
    keys=st.sampled_from([[], ["k"], [b"k", b"l"]]),
)
def test_any_input_is_a_callback_or_a_rejection(
    body: bytes, headers: list[tuple[bytes, bytes]], query: str | bytes, keys: list[str]
) -> None:
    """It is signed only if there is a key."""
    statuses = []
    try:
        event = read_callback(headers, body, query, keys, now=AT)
    except CallbackRejected as rejected:
        statuses.append(rejected.http_status)
    else:
        assert event.signed == bool(keys)
        assert event.attempt_id in {None, ATTEMPT}
    assert statuses in ([], [400], [401])


# --- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "attempt"),
    [
        (f"c={ATTEMPT}", ATTEMPT),
        (f"a=1&c={ATTEMPT}&b=2".encode(), ATTEMPT),
        ("", None),
        (b"", None),
        ("c=", None),
        (f"c={ATTEMPT}&c={ATTEMPT}", None),
        (f"C={ATTEMPT}", None),
        (f"c={ATTEMPT.upper()}", None),
        (f"c={ATTEMPT}0", None),
        (f"c={ATTEMPT}%00", None),
        (f"c={ATTEMPT[:-1]}", None),
        ("c=' OR 1=1 --", None),
        ("&".join(f"a{n}=1" for n in range(30)) + f"&c={ATTEMPT}", None),
        (b"c=\xff\xfe", None),
    ],
)
def test_attempts_in_queries(query: str | bytes, attempt: str | None) -> None:
    """The attempt is the one parameter ``c`` of 32 hexadecimal digits; anything else is none."""
    assert attempt_in(query) == attempt


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://example.com/hook", f"https://example.com/hook?c={ATTEMPT}"),
        ("https://example.com/hook?", f"https://example.com/hook?c={ATTEMPT}"),
        ("https://example.com", f"https://example.com?c={ATTEMPT}"),
        ("http://127.0.0.1:8000/?tenant=a%20b&x", f"http://127.0.0.1:8000/?tenant=a%20b&x&c={ATTEMPT}"),
    ],
)
def test_addresses_keep_their_query(url: str, address: str) -> None:
    """An attempt's address is the endpoint's with one parameter more, and it leads back to the attempt."""
    made = CallbackEndpoint(url).address_for(ATTEMPT)
    assert made == address
    assert attempt_in(made.partition("?")[2]) == ATTEMPT


@pytest.mark.parametrize(
    "url",
    [
        "",
        None,
        5,
        "example.com/hook",
        "ftp://example.com",
        "https://",
        "https://user@example.com/hook",
        "https://user:word@example.com/hook",
        "https://:word@example.com/hook",
        "https://example.com/hook#part",
        "https://example.com/hook?c=1",
        "https://example.com/hook?a=1&c=",
        "https://example.com/a b",
        "https://example.com:99999/",
    ],
)
def test_addresses_that_cannot_be_called(url: Any) -> None:
    """An endpoint that the vendor could not call, or that has our parameter already, is refused."""
    with pytest.raises(InvalidInput):
        CallbackEndpoint(url)


def test_endpoints_reveal_no_key() -> None:
    """The key is in no repr and no error; the endpoint is compared and changed like any value."""
    endpoint = CallbackEndpoint("https://example.com/hook", key=[KEY, b" other\n"])
    assert endpoint.keys == (KEY.encode(), b"other")
    assert KEY not in repr(endpoint)
    assert attrs.evolve(endpoint, url="https://example.com/b").keys == endpoint.keys
    assert CallbackEndpoint("https://example.com/hook", "k").keys == (b"k",)
    assert CallbackEndpoint("https://example.com/hook").keys == ()


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), True, "5"])
def test_waits_are_seconds(wait: Any) -> None:
    """The wait of a job in doubt is a number of seconds."""
    assert CallbackEndpoint("https://example.com", doubt_wait_s=0).doubt_wait_s == 0
    with pytest.raises(InvalidInput, match="doubt_wait_s"):
        CallbackEndpoint("https://example.com", doubt_wait_s=wait)


@pytest.mark.parametrize(("timeout_s", "wait_s"), [(20, 1920), (300, 1920), (600, 1920), (900, 2220)])
def test_a_job_in_doubt_waits_for_the_last_delivery(timeout_s: float, wait_s: float) -> None:
    """With any timeout of ours, a task may take ten minutes, and its callback four deliveries."""
    assert CallbackEndpoint("https://example.com").wait_for_doubts_s(timeout_s) == wait_s
    assert CallbackEndpoint("https://example.com", doubt_wait_s=7).wait_for_doubts_s(timeout_s) == 7


@pytest.mark.parametrize(
    ("given_keys", "keys"),
    [
        (None, ()),
        ([], ()),
        ("k", (b"k",)),
        (b" k\n", (b"k",)),
        (["k", b"l"], (b"k", b"l")),
        (("ü",), ("ü".encode(),)),
        (iter(["k"]), (b"k",)),
    ],
)
def test_keys_come_in_many_forms(given_keys: Any, keys: tuple[bytes, ...]) -> None:
    """One key, several, or none, as strings or bytes."""
    assert check_keys(given_keys) == keys


@pytest.mark.parametrize(
    "bad", ["", " ", b"", [""], ["k", " "], 5, True, [5], [None], bytearray(b"k"), "\udc80k"]
)
def test_bad_keys(bad: Any) -> None:
    """A blank key, a number, or text that is none is refused, without being shown."""
    with pytest.raises(InvalidInput, match="A webhook key must be"):
        check_keys(bad)
