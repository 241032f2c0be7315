"""Results in an object store, and inputs from there: a real S3 server, stopped and started again."""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyio import to_thread
from PIL import Image

from flux_async import (
    Charge,
    ConfigurationError,
    DownloadError,
    EditRequest,
    Failed,
    FluxClient,
    FolderNotWritable,
    ImageStream,
    InvalidInput,
    Job,
    JobKey,
    Scope,
    Succeeded,
    run_batch,
    sink_for,
)
from flux_async.files.image_writer import IncomingImage
from flux_async.files.object_store import ObjectStoreSink, read_object
from flux_async.policy.downloads import DownloadLimits
from flux_async.testing import FluxSandbox, VirtualClock
from servers import Bucket

URLS = [f"https://example.com/{n}.jpg" for n in range(4)]
JOB = Job(key=JobKey("one"), request=EditRequest.text_removal(URLS[0]))


@pytest.fixture(autouse=True)
def environment(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables with which programs find the server."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def sandbox(flux_clock: VirtualClock, flux_sandbox: FluxSandbox) -> FluxSandbox:
    """A sandbox on virtual time."""
    return flux_sandbox


async def run(client: FluxClient, images: Any, **options: Any) -> list[Any]:
    async with client, run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


def png(side: int) -> bytes:
    """Return an image of noise, which no format makes smaller."""
    noise = np.random.default_rng(7).integers(0, 255, (side, side, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG", compress_level=0)
    return content.getvalue()


async def saved(sink: Any, content: bytes, name: str = "one.png") -> str:
    """Save an image as a download does."""

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    image = IncomingImage(None, DownloadLimits(), name=name)
    try:
        await image.take(chunks())
        stream: ImageStream = await image.whole(lambda: False)
        return str(await sink.save(JOB, stream))
    finally:
        await image.discard()


async def test_a_batch_saves_its_images_as_objects(s3: Bucket, sandbox: FluxSandbox) -> None:
    """Each is whole, under its name, with its media type; the reference is its address."""
    outcomes = await run(sandbox.client(), URLS, sink=sink_for(f"{s3.url}/clean/2026"))
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    keys = {outcome.reference.removeprefix(f"{s3.url}/") for outcome in outcomes}
    assert set(s3.names()) == keys
    assert all(key.startswith("clean/2026/") for key in keys)
    for outcome in outcomes:
        stored = s3.get(outcome.reference.removeprefix(f"{s3.url}/"))
        assert Image.open(io.BytesIO(stored.content)).size
        assert stored.headers["content-type"] in {"image/png", "image/jpeg"}


async def test_a_large_image_is_sent_in_parts_and_is_whole(s3: Bucket) -> None:
    """Its bytes and its media type are those of the image."""
    content = png(1900)
    assert len(content) > 8 * 1024 * 1024
    assert (
        await saved(sink_for(s3.url), content, "in a folder/large +.png")
        == f"{s3.url}/in a folder/large +.png"
    )
    (name,) = s3.names()
    stored = s3.get(name)
    assert (name, stored.content == content) == ("in a folder/large +.png", True)
    assert stored.headers["content-type"] == "image/png"
    assert "-" in stored.headers["etag"]  # which is that of an upload in parts


async def test_results_of_a_server_that_is_down_are_saved_later(s3: Bucket, sandbox: FluxSandbox) -> None:
    """They stay paid, are paid once, and are saved when the server is there again."""
    tried: list[str] = []

    class Watched(ObjectStoreSink):
        async def save(self, job: Job, stream: ImageStream) -> str:
            """Start the server again once each image has been tried."""
            tried.append(job.key)
            try:
                return await super().save(job, stream)
            except DownloadError:
                if len(tried) == len(URLS):
                    s3.start()
                raise

    sink = Watched(s3.url)
    s3.stop()
    outcomes = await run(sandbox.client(), URLS, sink=sink, patience=600)
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert len(s3.names()) == len(URLS)
    assert len(tried) > len(URLS)
    assert sandbox.ledger.accepted == len(URLS)


async def test_a_bucket_that_is_not_there_stops_the_run(s3: Bucket) -> None:
    """The next result would be refused, too; the check says so before anything is sent."""
    sink = ObjectStoreSink("s3://no-such-bucket/prefix")
    with pytest.raises(FolderNotWritable, match="there is no such bucket") as raised:
        await saved(sink, png(8))
    assert (raised.value.scope, raised.value.charge) == (Scope.STOP, Charge.YES)
    with pytest.raises(ConfigurationError, match=r"no such bucket.*AWS_ENDPOINT_URL\. Nothing was sent"):
        await sink.check()


async def test_the_check_leaves_nothing_behind(s3: Bucket) -> None:
    """It writes and deletes an object."""
    await ObjectStoreSink(s3.url).check()
    assert s3.names() == []


async def test_the_check_of_a_server_that_is_down_says_so(s3: Bucket) -> None:
    """In one sentence, without the address of a request."""
    s3.stop()
    with pytest.raises(ConfigurationError) as raised:
        await ObjectStoreSink(s3.url).check()
    assert raised.value.message == f"{s3.url} could not be written: HTTP error: error sending request."


async def test_inputs_of_a_store_are_uploaded(s3: Bucket, sandbox: FluxSandbox, tmp_path: Path) -> None:
    """Their addresses never reach the vendor; the job is named by them, so that it is not paid twice."""
    for number in range(2):
        s3.put(f"in/photo {number}.png", png(32 + number))
    images = [f"{s3.url}/in/photo {number}.png" for number in range(2)]
    outcomes = await run(sandbox.client(), [*images, images[0]])
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Succeeded]
    assert {outcome.job.request.input_image for outcome in outcomes} == set(images)
    assert all("s3:" not in image for image in sandbox.ledger.read().images)
    assert sandbox.ledger.accepted == len(images)
    async with sandbox.client() as client:
        image = await client.remove_text(images[0])
        assert image.task_id
        assert (await client.upload(images[1])).size == len(png(33))
        saved = await client.download(images[1], tmp_path / "original", match_suffix=True)
        assert (saved.path.name, saved.path.read_bytes()) == ("original.png", png(33))


@pytest.mark.parametrize(
    ("key", "words"), [("missing.png", "does not exist"), ("empty.png", "is empty")], ids=["missing", "empty"]
)
async def test_an_input_that_is_no_image_costs_nothing(
    s3: Bucket, sandbox: FluxSandbox, key: str, words: str
) -> None:
    """Only its own job fails."""
    s3.put("empty.png", b"")
    (outcome,) = await run(sandbox.client(), [f"{s3.url}/{key}"])
    assert isinstance(outcome, Failed)
    assert words in outcome.error.message
    assert outcome.error.charge is Charge.NO
    assert not sandbox.ledger.charged


@pytest.fixture(params=["gs", "az"])
def other_store(request: pytest.FixtureRequest, s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket of another provider.

    Google's XML API, which the client of obstore speaks, has the requests of S3: the server is the same.
    """
    if request.param == "gs":
        monkeypatch.setenv("GOOGLE_BASE_URL", s3.endpoint)
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
        return f"gs://{s3.name}"
    azurite = request.getfixturevalue("azurite")
    azurite.create(s3.name)
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    return f"az://{s3.name}"


async def test_other_providers_keep_whole_images(other_store: str) -> None:
    """Written in one request or in parts, replaced, read again; what is missing is said as for S3."""
    sink, content = (
        sink_for(f"{other_store}/clean/2026"),
        {"a folder/small +%.png": png(32), "large.png": png(1900)},
    )
    assert isinstance(sink, ObjectStoreSink)
    await sink.check()
    for name, image in [*content.items(), *content.items()]:
        assert await saved(sink, image, name) == f"{other_store}/clean/2026/{name}"
        with await read_object(f"{other_store}/clean/2026/{name}", 1_000_000_000) as found:
            assert found.read() == image
        stored = await to_thread.run_sync(sink.store.get, f"clean/2026/{name}")
        assert stored.attributes["Content-Type"] == "image/png"
    with pytest.raises(InvalidInput, match="does not exist"):
        await read_object(f"{other_store}/none.png", 1000)
    with pytest.raises(FolderNotWritable, match="there is no such bucket"):
        await saved(sink_for(f"{other_store}-2"), png(8))


async def test_an_upload_whose_parts_are_gone_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is there: the run does not stop."""
    refusal = b"<Error><Code>NoSuchUpload</Code></Error>"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            self.answer(200, found)

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(404, refusal)

        def do_DELETE(self) -> None:
            self.answer(404, refusal)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(DownloadError) as raised:
            await saved(ObjectStoreSink("s3://bucket"), png(1700))
        server.shutdown()
    assert raised.value.retryable
