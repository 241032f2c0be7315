"""Addresses of object stores, as inputs and as destinations; nothing here needs a server."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest

from flux_async import (
    ConfigurationError,
    EditRequest,
    FluxClient,
    FolderSink,
    InvalidInput,
    MissingExtra,
    run_batch,
    sink_for,
)
from flux_async.api.stored_requests import fields_to_send, store_request
from flux_async.cli.destination import RunOutput, split_output
from flux_async.files.object_store import ObjectStoreSink
from flux_async.images import must_be_uploaded
from flux_async.policy.image_urls import check_reachable
from flux_async.testing import FluxSandbox, VirtualClock


@pytest.mark.parametrize("image", ["s3://bucket/a/photo 1.png", "gs://bucket/a.jpg", "az://container/ä.webp"])
def test_an_object_is_an_input_and_is_never_sent_as_it_is(image: str) -> None:
    """Its address names the job; a submit of it is refused before it leaves."""
    request = EditRequest.text_removal(image)
    assert request.input_image == image
    assert must_be_uploaded(image)
    check_reachable(image, api_host="api.kie.ai")
    with pytest.raises(InvalidInput, match="has not been uploaded"):
        fields_to_send(store_request(request), None)


@pytest.mark.parametrize(
    "image",
    ["s3://bucket", "s3://bucket/", "s3:///key", "s3://bucket/a#1.png", "s3://bucket/a?x", "s3://b/a\n"],
)
def test_what_names_no_object_is_refused(image: str) -> None:
    """No key, no bucket, or characters with a meaning of their own in an address."""
    with pytest.raises(InvalidInput, match=r"is not the address of an object.*s3://bucket/key"):
        EditRequest.text_removal(image)


@pytest.mark.parametrize(
    ("destination", "folder"),
    [("clean", "clean"), ("file:///srv/clean%20images", "/srv/clean images"), ("file://localhost/x", "/x")],
)
def test_folders_need_no_extra(destination: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path and a ``file://`` address are the same sink."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert sink_for(destination) == FolderSink(Path(folder))


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("https://bucket.example.com/x", "not the address of an object store"),
        ("s3://", "not the address of an object store"),
        ("s3://bucket/a//b", "not the address of an object store"),
        ("s3://bucket/a?acl=public", "not the address of an object store"),
        ("file://host/x", "not the address of a folder"),
    ],
)
def test_other_destinations_are_refused(destination: str, words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidInput, match=words):
        sink_for(destination)


def test_a_store_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it."""
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingExtra, match=r"s3:// needs the extra storage.*flux-async\[storage\]"):
        sink_for("s3://bucket/clean")


def test_a_setting_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, with the variables that hold it."""
    pytest.importorskip("obstore")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        ConfigurationError,
        match=r"az://container cannot be opened: Account must be specified.*AZURE_STORAGE_ACCOUNT_KEY",
    ):
        sink_for("az://container/clean")


async def test_a_store_in_memory_keeps_the_images(
    flux_clock: VirtualClock, flux_sandbox: FluxSandbox
) -> None:
    """``memory://`` is for tests: the store can be read."""
    pytest.importorskip("obstore")
    sink = sink_for("memory://")
    assert isinstance(sink, ObjectStoreSink)
    await sink.check()
    client: FluxClient = flux_sandbox.client()
    async with (
        client,
        run_batch(client, ["https://example.com/a.jpg"], sink=sink, name_file=lambda _: "a") as run,
    ):
        (outcome,) = [one async for one in run]
    name = outcome.reference.removeprefix("memory://")
    assert name in {"a.png", "a.jpg"}
    assert io.BytesIO(bytes(sink.store.get(name).bytes())).read(1)
    assert [one["path"] for page in sink.store.list() for one in page] == [name]


def test_an_output_is_a_folder_or_an_address(tmp_path: Path) -> None:
    """``file://`` is the folder; the journal of an address has a folder that is named after it."""
    pytest.importorskip("obstore")
    output = RunOutput()
    assert output.convert("out", None, None) == Path("out")
    assert output.convert(f"file://{tmp_path}", None, None) == tmp_path
    assert output.convert("s3://my-bucket/clean/", None, None) == "s3://my-bucket/clean"
    assert split_output("s3://my-bucket/clean", None)[0] == Path("flux-out-s3-my-bucket-clean")
    assert split_output("s3://my-bucket/clean", tmp_path) == (tmp_path, "s3://my-bucket/clean")
    assert split_output(tmp_path, None) == (tmp_path, None)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("memory://", "ends with the command"),
        ("ftp://host/x", "not the address of an object store"),
        ("s3://", "not the address of an object store"),
    ],
)
def test_an_output_that_would_lose_results_is_a_usage_error(value: str, words: str) -> None:
    """Before anything is sent."""
    pytest.importorskip("obstore")
    with pytest.raises(click.BadParameter, match=words):
        RunOutput().convert(value, None, None)


def test_a_folder_has_its_journal_in_it(tmp_path: Path) -> None:
    """``--journal-dir`` beside a folder is a mistake."""
    with pytest.raises(click.UsageError, match="--journal-dir is for results in an object store"):
        split_output(tmp_path, tmp_path)
