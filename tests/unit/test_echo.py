"""Whether a record shows the request that was sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flux_async.api.echo import (
    compare,
    in_words,
    is_of_attempt,
    mismatch,
    spellings_of,
    subject_of,
)
from flux_async.api.stored_requests import store_request
from flux_async.errors import Charge
from flux_async.models import Echo, EditRequest, GenerateRequest, JobKey, TaskId, TaskRecord, TaskStatus

BODY = store_request(EditRequest.text_removal("https://h.example/a.jpg"))
CALLBACK = "0123456789abcdef0123456789abcdef"
PROMPT = json.loads(BODY)["prompt"]


def sent(image: str, **options: Any) -> str:
    """Return the body of a submit about an image."""
    return store_request(EditRequest.text_removal(image, **options))


# --- against one submit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "echo"),
    [
        (None, Echo.ABSENT),
        ({}, Echo.ABSENT),
        ({"prompt": PROMPT}, Echo.ABSENT),
        ({"prompt": PROMPT, "inputImage": ""}, Echo.ABSENT),
        ({"inputImage": "https://h.example/a.jpg", "aspectRatio": "1:1"}, Echo.ABSENT),
        ({"prompt": PROMPT, "inputImage": "https://h.example/a.jpg"}, Echo.CONFIRMED),
        ({"prompt": f" {PROMPT}\n", "inputImage": "https://h.example/a.jpg"}, Echo.CONFIRMED),
        (json.loads(BODY) | {"enableTranslation": "false"}, Echo.CONFIRMED),
        (json.loads(BODY) | {"inputImage": "https://h.example/b.jpg"}, Echo.UNRECOGNISED),
        ({"inputImage": "https://h.example/b.jpg"}, Echo.UNRECOGNISED),
        (json.loads(BODY) | {"inputImage": ["https://h.example/a.jpg"]}, Echo.UNRECOGNISED),
        (json.loads(BODY) | {"prompt": "another"}, Echo.UNRECOGNISED),
        (json.loads(BODY) | {"model": "flux-kontext-max"}, Echo.UNRECOGNISED),
    ],
    ids=str,
)
def test_prompt_image_and_model_identify_the_record(told: Any, echo: Echo) -> None:
    """All of the three that are shown must be as sent; missing ones contradict nothing."""
    assert compare(told, BODY).echo is echo


def test_an_image_in_the_record_of_a_request_without_one_differs() -> None:
    """The record of an edit never belongs to a generated image."""
    words = store_request(GenerateRequest(prompt="a lighthouse"))
    assert compare({"prompt": "a lighthouse"}, words).echo is Echo.CONFIRMED
    told = {"prompt": "a lighthouse", "inputImage": "https://h.example/a.jpg"}
    assert compare(told, words).echo is Echo.UNRECOGNISED


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://h.example/a%20b.jpg", "https://h.example/a b.jpg"),
        ("https://h.example/%c3%a9.jpg", "https://h.example/%C3%A9.jpg"),
        ("https://h.example/é.jpg", "https://h.example/%C3%A9.jpg"),
        ("https://h.example/a%7Eb%27.jpg?x=%2F", "https://h.example/a~b'.jpg?x=/"),
    ],
)
def test_percent_encoding_may_be_respelled(given: str, told: str) -> None:
    """An address in another spelling is the same address, but not the same characters."""
    seen = compare({"prompt": PROMPT, "inputImage": told}, sent(given))
    assert (seen.is_same, seen.is_verbatim, seen.rest_is_same) == (True, False, True)
    assert compare({"prompt": PROMPT, "inputImage": given}, sent(given)).is_verbatim


def test_an_escaped_percent_sign_is_another_image() -> None:
    """``%2520`` is a file with ``%20`` in its name."""
    told = {"prompt": PROMPT, "inputImage": "https://h.example/a%20b.jpg"}
    assert compare(told, sent("https://h.example/a%2520b.jpg")).echo is Echo.UNRECOGNISED


@pytest.mark.parametrize(
    ("options", "reworded"),
    [
        ({}, False),
        ({"prompt": "ohne Text"}, True),
        ({"prompt": "ohne Text", "enable_translation": False}, False),
        ({"prompt": "ohne Text", "enable_translation": False, "prompt_upsampling": True}, True),
    ],
)
def test_a_prompt_that_the_vendor_may_translate_is_distinguished(
    options: dict[str, Any], reworded: bool
) -> None:
    """Translation is on unless it was switched off; our own prompt switches it off."""
    body = sent("https://h.example/a.jpg", **options)
    told = {"prompt": "without text", "inputImage": "https://h.example/a.jpg"}
    assert (compare(told, body).is_same, compare(told, body).is_reworded) == (False, reworded)
    assert not compare({"prompt": "without text"}, body).is_reworded


def test_another_model_is_no_other_subject() -> None:
    """The request of another model about the same image is not reported as another image."""
    told = json.loads(BODY)
    assert not compare(told | {"model": "flux-kontext-max"}, BODY).is_other_subject
    assert compare(told | {"prompt": "another"}, BODY).is_other_subject


@pytest.mark.parametrize(
    ("told", "is_same_image"),
    [
        ({"inputImage": "https://h.example/a.jpg"}, True),
        ({"inputImage": "https://h.example/a.jpg", "prompt": "another"}, True),
        ({"inputImage": "https://h.example/%61.jpg", "prompt": "another", "model": "m"}, True),
        (json.loads(BODY), True),
        ({"inputImage": "https://h.example/b.jpg"}, False),
        (json.loads(BODY) | {"inputImage": "https://h.example/b.jpg"}, False),
        ({"prompt": PROMPT}, None),
        ({"prompt": "another"}, None),
    ],
    ids=str,
)
def test_the_image_is_compared_apart_from_the_prompt(told: Any, is_same_image: bool | None) -> None:
    """With any prompt and model."""
    assert compare(told, BODY).is_same_image is is_same_image


# --- against one attempt ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"callBackUrl": f"https://elsewhere.example/?c={CALLBACK}"}, True),
        ({"callBackUrl": "https://elsewhere.example/?c=" + "f" * 32}, False),
        ({"prompt": "another"}, False),
        ({"inputImage": "https://h.example/b.jpg"}, False),
        ({"model": "flux-kontext-max"}, False),
        ({"unheard": 1}, True),
        ({"callBackUrl": f"https://ours.example/?c={CALLBACK}", "enableTranslation": "false"}, True),
        ({"enableTranslation": "false"}, False),
    ],
)
def test_an_echo_is_of_the_same_submit(changes: dict[str, Any], expected: bool) -> None:
    """What the vendor repeats must be what was sent, but for an address that names the attempt anyhow."""
    assert is_of_attempt(json.loads(BODY) | changes, BODY, CALLBACK) is expected


def test_an_echo_must_show_prompt_and_image() -> None:
    """A partial, empty or unreadable echo proves nothing, unless it shows another request."""
    sent = json.loads(BODY)
    assert is_of_attempt({"prompt": sent["prompt"], "inputImage": sent["inputImage"]}, BODY) is True
    assert is_of_attempt({"prompt": sent["prompt"]}, BODY) is None
    assert is_of_attempt({"prompt": sent["prompt"], "inputImage": None}, BODY) is None
    assert is_of_attempt({"callBackUrl": f"https://ours.example/?c={CALLBACK}"}, BODY, CALLBACK) is None
    assert is_of_attempt({"callBackUrl": "https://ours.example/?c=other"}, BODY, CALLBACK) is False
    assert is_of_attempt({"prompt": "another"}, BODY) is False
    assert is_of_attempt({}, BODY) is None
    assert is_of_attempt(None, BODY) is None
    words = store_request(GenerateRequest(prompt="a lighthouse"))
    assert is_of_attempt({"prompt": "a lighthouse"}, words, CALLBACK) is True


# --- in other words -----------------------------------------------------------------------------------------


def test_a_subject_has_one_spelling() -> None:
    """Image and prompt as sent, and as a record respells them, are one subject."""
    body = json.loads(sent("https://h.example/a%20b.jpg"))
    told = {"prompt": f"{PROMPT} ", "inputImage": "https://h.example/a b.jpg"}
    assert subject_of(body) == subject_of(told) == ("https://h.example/a b.jpg", PROMPT)
    assert subject_of({"prompt": ""}) == (None, None)


def test_spellings_that_are_searched() -> None:
    """As shown, decoded, and encoded; half a surrogate pair is no text for a database."""
    assert spellings_of({"inputImage": "https://h/a b%2F.jpg", "prompt": "p"}) == [
        "https://h/a b%2F.jpg",
        "https://h/a b/.jpg",
        "https://h/a%20b/.jpg",
    ]
    assert spellings_of({"prompt": "a \ud800"}) == ["a ?"]
    assert "https://h/?" in spellings_of({"inputImage": "https://h/\ud800"})
    assert spellings_of({}) == []


def test_a_mismatch_names_the_task_and_the_shown_request() -> None:
    """And that the submit may be charged."""
    params = {"prompt": "p", "inputImage": "https://u:pw@h.example/b.jpg?sig=1", "model": "m"}
    record = TaskRecord(task_id=TaskId("t1"), status=TaskStatus.SUCCESS, params=params)
    error = mismatch(TaskId("t1"), record, belongs_to=JobKey("k2"))
    assert (error.charge, error.task_id, error.refused_task_id) == (Charge.MAYBE, None, "t1")
    assert error.record is record
    assert "task t1" in str(error)
    assert "that of job k2" in str(error)
    assert "image 'https://h.example/b.jpg', prompt 'p', model 'm'" in str(error)
    assert "sig=" not in str(error)
    empty = TaskRecord(task_id=TaskId("t1"), status=TaskStatus.SUCCESS)
    assert "another request (nothing)" in str(mismatch(TaskId("t1"), empty))
    assert in_words(None) == "nothing"
