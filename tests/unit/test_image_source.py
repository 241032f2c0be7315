"""A file of this machine in a request: named by its content, never sent as it is."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from flux_async import EditRequest, InvalidInput, Job, JobKey, LocalImage
from flux_async.api.kontext import build_submit
from flux_async.api.stored_requests import read_image, read_request, store_request, with_input

A, B = "a" * 64, "b" * 64
URL = "https://example.com/a.jpg"


def job(image: LocalImage) -> Job:
    return Job(request=EditRequest.text_removal(image))


def test_the_same_content_is_the_same_job() -> None:
    """Whatever the file is called and wherever it is; another content is another job."""
    here = job(LocalImage(path="a.jpg", sha256=A))
    moved = job(LocalImage(path="/elsewhere/b.jpg", folder="/x", sha256=A))
    assert here.key == moved.key
    assert store_request(here.request) == store_request(moved.request)
    assert job(LocalImage(path="a.jpg", sha256=B)).key != here.key
    assert here.key != Job(request=EditRequest.text_removal(URL)).key


def test_a_path_stands_for_a_file_that_is_not_read_yet() -> None:
    """A Path is taken where a URL is; a job about it needs a key of its own until it is read."""
    request = EditRequest.text_removal(Path("photos") / "a.jpg")
    assert request.input_image == LocalImage(path="photos/a.jpg")
    assert str(request.input_image) == "photos/a.jpg"
    assert Job(request=request, key=JobKey("mine")).key == "mine"
    with pytest.raises(InvalidInput, match="not been read"):
        Job(request=request)


@pytest.mark.parametrize("path", ["", "a\0b", 7, b""])
def test_what_is_no_path_is_refused(path: object) -> None:
    """At birth, as every value."""
    with pytest.raises(InvalidInput):
        LocalImage(path=path)


@pytest.mark.parametrize("digest", ["", "x" * 64, "A" * 64, "a" * 63, 7])
def test_what_is_no_digest_is_refused(digest: object) -> None:
    """64 hex digits, in lower case."""
    with pytest.raises(InvalidInput, match="sha256"):
        LocalImage(path="a", sha256=digest)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="path"):
        LocalImage()


def test_a_file_is_never_sent_as_it_is() -> None:
    """A request about a file has to be uploaded before a submit can be built."""
    with pytest.raises(InvalidInput, match="not been uploaded"):
        build_submit(store_request(EditRequest.text_removal(LocalImage(path="a.jpg", sha256=A))))


def test_a_stored_request_names_the_content_and_is_read_back() -> None:
    """The journal's form has no path and no upload address; the sent one has the address instead."""
    request = EditRequest.text_removal(LocalImage(path="a.jpg", sha256=A), output_format="png")
    stored = store_request(request)
    assert read_image(stored) == f"sha256:{A}"
    assert "a.jpg" not in stored
    back = read_request(stored)
    assert isinstance(back, EditRequest)
    assert back.input_image == LocalImage(sha256=A)
    assert (str(back.input_image), back.input_image.location) == (f"sha256:{A}", None)
    sent = json.loads(with_input(stored, URL))
    assert sent == json.loads(stored) | {"inputImage": URL}
    assert with_input(stored, None) == stored


def test_where_a_file_is() -> None:
    """A relative path is relative to its folder; an absolute one is itself."""
    assert LocalImage(path="a.jpg", folder="/lists").location == Path("/lists/a.jpg")
    assert LocalImage(path="/x/a.jpg", folder="/lists").location == Path("/x/a.jpg")
    assert LocalImage(path="a.jpg").location == Path("a.jpg")


def test_a_reference_is_a_reference_only_when_whole() -> None:
    """Anything else is an address, and refused where it is none."""
    assert LocalImage.of_reference(f"sha256:{A}") == LocalImage(sha256=A)
    assert LocalImage.of_reference(URL) is None
    assert LocalImage.of_reference("sha256:abc") is None
    with pytest.raises(InvalidInput):
        EditRequest.text_removal(f"sha256:{A}")
    assert pickle.loads(pickle.dumps(LocalImage(path="a.jpg"))) == LocalImage(path="a.jpg")
