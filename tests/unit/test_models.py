"""Values are checked when they are made, before any credit is spent."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async import (
    AspectRatio,
    EditRequest,
    GenerateRequest,
    InvalidInput,
    Job,
    LocalImage,
    Model,
    OutputFormat,
    RequestOptions,
    TaskStatus,
)
from flux_async.images import check_http_url
from flux_async.models import AspectRatioName, OutputFormatName, TaskRecord, digest_key

URL = "https://example.com/a.jpg"


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", None, 7, b"x", "lone \ud800"])
def test_a_prompt_must_be_text(prompt: Any) -> None:
    """Blank prompts, other types and broken Unicode are refused."""
    with pytest.raises(InvalidInput, match="prompt"):
        GenerateRequest(prompt=prompt)


@pytest.mark.parametrize("value", range(7))
def test_generating_takes_safety_tolerance_0_to_6(value: int) -> None:
    """Generation accepts the whole range."""
    assert GenerateRequest(prompt="x", safety_tolerance=value).safety_tolerance == value


@pytest.mark.parametrize("value", [-1, 3, 6, 2.0, True, "1"])
def test_editing_takes_safety_tolerance_0_to_2(value: Any) -> None:
    """Editing refuses what generation would allow, and anything that is no whole number."""
    with pytest.raises(InvalidInput, match="from 0 to 2 for EditRequest"):
        EditRequest(prompt="x", input_image=URL, safety_tolerance=value)


def test_generating_refuses_7() -> None:
    """Above the range the vendor would answer code 500; it is refused before."""
    with pytest.raises(InvalidInput, match="from 0 to 6 for GenerateRequest"):
        GenerateRequest(prompt="x", safety_tolerance=7)


@pytest.mark.parametrize("ratio", ["21:9", "16:9", "4:3", "1:1", "3:4", "9:16", "16:21"])
def test_the_seven_aspect_ratios(ratio: str) -> None:
    """Each documented ratio is accepted as a string and kept as a member."""
    assert GenerateRequest(prompt="x", aspect_ratio=ratio).aspect_ratio is AspectRatio(ratio)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("aspect_ratio", "2:1", "21:9, 16:9"),
        ("model", "flux-dev", "flux-kontext-pro, flux-kontext-max"),
        ("model", None, "flux-kontext-pro"),
        ("output_format", "webp", "jpeg, png"),
        ("enable_translation", "false", "True or False"),
        ("prompt_upsampling", 1, "True or False"),
        ("upload_cn", 0, "True or False"),
        ("watermark", " ", "blank"),
        ("watermark", "a\0", "NUL"),
        ("watermark", "\ud800", "Unicode"),
        ("callback_url", "ftp://example.com", "http"),
    ],
)
def test_a_bad_option_is_named_with_its_choices(field: str, value: Any, says: str) -> None:
    """The message names the field and what it may be."""
    with pytest.raises(InvalidInput, match=f"{field}.*{says}"):
        GenerateRequest(prompt="x", **{field: value})


def test_texts_and_addresses_of_no_sensible_length_are_refused() -> None:
    """Before they are stored, logged and sent; a server would refuse them after the submit."""
    with pytest.raises(InvalidInput, match="prompt is longer than 100,000 characters"):
        GenerateRequest(prompt="x" * 100_001)
    assert len(GenerateRequest(prompt="x" * 100_000).prompt) == 100_000
    address = "https://example.com/".ljust(16_384, "x")
    assert EditRequest.text_removal(address).input_image == address
    with pytest.raises(InvalidInput, match="is longer than 16,384 characters") as refused:
        EditRequest.text_removal(address + "x")
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "url",
    [
        "photo.jpg",
        "/tmp/photo.jpg",
        "file:///etc/passwd",
        "ftp://example.com/a.jpg",
        "http://",
        "https:///a.jpg",
        "http://[::1",
        "http://example.com:99999/a.jpg",
        "https://example.com/a b.jpg",
        "https://example.com/a\n.jpg",
        "data:image/png;base64,AAAA",
        "DATA:,x",
        "",
        None,
        7,
        b"https://example.com",
        "x" * 5000,
    ],
)
def test_only_http_urls_are_images(url: Any) -> None:
    """Anything but an absolute http(s) URL is refused, with a message of bounded length."""
    with pytest.raises(InvalidInput) as caught:
        EditRequest.text_removal(url)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "HTTP://EXAMPLE.COM",
        "http://127.0.0.1:8787/a?b=c#d",
        "https://exämple.com/ü.jpg",
        "http://[::1]:80/x",
    ],
)
def test_http_urls_are_kept_as_they_are(url: str) -> None:
    """A good URL is not rewritten."""
    assert check_http_url(url) == url


def test_text_removal_leaves_framing_and_translation_alone() -> None:
    """No aspect ratio, which would crop or pad; no translation of our own English prompt."""
    request = EditRequest.text_removal(URL)
    assert request.aspect_ratio is None
    assert request.enable_translation is False
    assert request.model is Model.PRO
    assert request.output_format is None


def test_text_removal_with_a_custom_prompt_leaves_translation_to_the_vendor() -> None:
    """Only the package's prompt is certainly English."""
    assert EditRequest.text_removal(URL, prompt="Entferne den Text").enable_translation is None
    assert EditRequest.text_removal(URL, enable_translation=True).enable_translation is True


def test_values_are_frozen_and_keyword_only() -> None:
    """A request cannot change after it was checked."""
    request = GenerateRequest(prompt="x", output_format="png")
    assert request.output_format is OutputFormat.PNG
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request.prompt = "y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        GenerateRequest("x")  # type: ignore[misc]


def test_a_job_is_named_by_its_request() -> None:
    """The key is the digest of the request, the same today and tomorrow, whatever the callback address."""
    job = Job(request=EditRequest.text_removal(URL))
    assert job.key == digest_key(job.request)
    assert len(job.key) == 64
    again = attrs.evolve(job.request, callback_url="https://example.com/hook")
    assert digest_key(again) == job.key
    assert digest_key(EditRequest.text_removal(URL, model="flux-kontext-max")) != job.key
    assert digest_key(GenerateRequest(prompt=job.request.prompt)) != job.key


def test_the_digest_never_changes() -> None:
    """The jobs of a journal written by an older release are found."""
    assert digest_key(EditRequest.text_removal(URL)).startswith("87e046b39d2c515a")


@pytest.mark.parametrize("key", ["", "  ", "k" * 201, 7])
def test_a_given_key_must_be_a_name(key: Any) -> None:
    """Blank, endless and non-text keys are refused."""
    with pytest.raises(InvalidInput, match="key"):
        Job(request=GenerateRequest(prompt="x"), key=key)


@given(st.text(min_size=1).filter(lambda text: text.strip() and text.isprintable()))
def test_any_printable_prompt_has_a_digest(prompt: str) -> None:
    """Whatever the language, a request can be named."""
    assert len(digest_key(GenerateRequest(prompt=prompt))) == 64


def test_failed_statuses() -> None:
    """Two of the four statuses are failures."""
    assert [status.is_failure for status in TaskStatus] == [False, False, True, True]


def test_generation_time_needs_both_ends() -> None:
    """Without both of the vendor's times there is no duration."""
    assert TaskRecord(task_id="t", status=TaskStatus.GENERATING).generation_s is None  # type: ignore[arg-type]


def test_a_path_as_text_is_refused_with_advice() -> None:
    """A request takes a file as a path, and text as an address."""
    with pytest.raises(InvalidInput, match=r"not an http\(s\) URL.*pathlib\.Path"):
        EditRequest.text_removal("photo.jpg")
    assert EditRequest.text_removal(Path("photo.jpg")).input_image == LocalImage(path="photo.jpg")


@pytest.mark.parametrize("kind", [GenerateRequest, EditRequest])
def test_options_by_name_are_the_fields_of_a_request(kind: type) -> None:
    """Every field beside prompt and image can be passed on by name, and nothing else."""
    fields = {field.name for field in attrs.fields(kind)}
    assert set(RequestOptions.__annotations__) == fields - {"prompt", "input_image"}


@pytest.mark.parametrize(
    ("names", "kind"), [(AspectRatioName, AspectRatio), (OutputFormatName, OutputFormat)]
)
def test_literals_of_type_checkers_are_the_values_of_the_enum(
    names: object, kind: type[enum.StrEnum]
) -> None:
    """In its order."""
    assert get_args(names) == tuple(member.value for member in kind)
