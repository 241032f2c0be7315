"""Every fault of the sandbox and its outcome for the real client: runs the table of ``docs/sandbox.md``."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

import flux_async.submitter
from flux_async import (
    AuthenticationError,
    CallbackEndpoint,
    Charge,
    ConnectionLost,
    ContentPolicyError,
    DownloadCutShort,
    DownloadError,
    EditRequest,
    Failed,
    FeatureDisabledError,
    FluxClient,
    FluxError,
    InDoubt,
    InsufficientCreditsError,
    InvalidRequestError,
    KeyLimitError,
    Limits,
    MaintenanceError,
    NotAnImage,
    NotFoundError,
    Outcome,
    PermissionDeniedError,
    PollDeadlineExceeded,
    PollPolicy,
    RateLimitedError,
    RetryPolicy,
    ServerError,
    Succeeded,
    TaskFailed,
    UnexpectedResponse,
    WebhookReceiver,
    run_batch,
)
from flux_async.sandbox import Fault, FaultPlan, Sandbox, SandboxSettings
from flux_async.sandbox.faults import parse_rules
from flux_async.sandbox.image_pipeline import ONE_PIXEL
from flux_async.sandbox.server import listening
from flux_async.testing.transport import ManagedTransport
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import make_transport

IMAGE = "https://pictures.example/poster.jpg"
VENDOR = "https://api.kie.ai"
BEGIN = 1_787_093_500.0
HOOK_KEY = "hook-key"
SPEED = 100
DOCUMENT = Path(__file__).parents[2] / "docs" / "sandbox.md"


class Halted:
    """Not an outcome of one image: the run itself ends with the error, and a later one resumes."""


@attrs.frozen
class Seen:
    """What a batch of one image comes to.

    Attributes:
        outcome: `Succeeded`, `Failed`, `InDoubt` or `Halted`.
        error: The class of its error.
        charge: What the error says was spent.
        tasks: How many tasks the sandbox made.
    """

    outcome: type
    error: type[FluxError] | None = None
    charge: Charge | None = None
    tasks: int = 1


GOOD = Seen(Succeeded)
NO, MAYBE, YES = Charge.NO, Charge.MAYBE, Charge.YES


def halted(error: type[FluxError], charge: Charge = NO, tasks: int = 0) -> Seen:
    return Seen(Halted, error, charge, tasks)


def refused(error: type[FluxError]) -> Seen:
    return Seen(Failed, error, NO, 0)


def doubted(error: type[FluxError], tasks: int = 1) -> Seen:
    return Seen(InDoubt, error, MAYBE, tasks)


# What is answered: in one process, on virtual time.
ANSWERS: dict[str, Seen] = {
    "maintenance": halted(MaintenanceError),
    "maintenance@0-30": GOOD,
    "key-disabled": halted(AuthenticationError),
    "balance-out": halted(InsufficientCreditsError),
    "drop-request": doubted(ConnectionLost, 0),
    "http-429": halted(RateLimitedError),
    "http-429=1": GOOD,
    "envelope-429": halted(RateLimitedError),
    "envelope-429=2": GOOD,
    "400": refused(ContentPolicyError),
    "401": halted(AuthenticationError),
    "402": halted(InsufficientCreditsError),
    "403": halted(PermissionDeniedError),
    "404": halted(UnexpectedResponse),
    "422": refused(InvalidRequestError),
    "433": halted(KeyLimitError),
    "455": halted(MaintenanceError),
    "455@0-30": GOOD,
    "500": doubted(ServerError, 0),
    "502": doubted(ServerError, 0),
    "505": halted(FeatureDisabledError),
    "drop-reply": doubted(ConnectionLost),
    "500-paid": doubted(ServerError),
    "502-paid": doubted(ServerError),
    "truncated-reply": doubted(UnexpectedResponse),
    "no-task-id": doubted(UnexpectedResponse),
    "overcharge": GOOD,
    "code-as-text": GOOD,
    "message-key": GOOD,
    "message-key,fail-envelope": Seen(Failed, TaskFailed, MAYBE),
    "late-record": GOOD,
    "late-record-null": GOOD,
    "late-record-404": GOOD,
    "poll-401": halted(AuthenticationError, YES, 1),
    "poll-429": GOOD,
    "poll-455": GOOD,
    "poll-500": GOOD,
    "poll-502": GOOD,
    "poll-html": GOOD,
    "poll-drop": GOOD,
    "poll-truncated": GOOD,
    "poll-other": GOOD,
    "flag-missing": GOOD,
    "flag-null": GOOD,
    "flag-unknown": GOOD,
    "flag-as-text": GOOD,
    "error-as-text": GOOD,
    "error-as-text,fail-501": Seen(Failed, TaskFailed, MAYBE),
    "times-iso": GOOD,
    "times-seconds": GOOD,
    "times-spaced": GOOD,
    "times-null": GOOD,
    "params-missing": GOOD,
    "params-invalid": GOOD,
    "no-url": Seen(Failed, UnexpectedResponse, YES),
    "no-response": Seen(Failed, UnexpectedResponse, YES),
    "url-in-data": GOOD,
    "url-in-list": GOOD,
    "response-as-text": GOOD,
    "response-as-url": GOOD,
    "fail-400": Seen(Failed, TaskFailed, MAYBE),
    "fail-500": Seen(Failed, TaskFailed, MAYBE),
    "fail-501": Seen(Failed, TaskFailed, MAYBE),
    "fail-create": Seen(Failed, TaskFailed, NO),
    "fail-envelope": Seen(Failed, TaskFailed, MAYBE),
    "no-refund,fail-500": Seen(Failed, TaskFailed, MAYBE),
    "timeout-flips": GOOD,
    "timeout-flips=600": Seen(Failed, TaskFailed, MAYBE),
    "never-ends": Seen(Failed, PollDeadlineExceeded, YES),
    "text-left": GOOD,
    "hallucinate": GOOD,
    "crop": GOOD,
}
# What breaks on the way: over a socket, in real time.
WIRES: dict[str, Seen] = {
    "drop-request": doubted(ConnectionLost, 0),
    "drop-reply": doubted(ConnectionLost),
    "slow-reply": doubted(ConnectionLost),
    "dripping-reply": doubted(ConnectionLost),
    "truncated-reply": doubted(UnexpectedResponse),
    "502-paid": doubted(ServerError),
    "poll-drop": GOOD,
}
# What becomes of the file: over a socket, brought to disk.
FILES: dict[str, Seen] = {
    "expired-result": Seen(Failed, DownloadError, YES),
    "file-html": Seen(Failed, NotAnImage, YES),
    "file-truncated": Seen(Failed, DownloadCutShort, YES),
    "file-wrong-type": GOOD,
    "file-jpeg-as-png": GOOD,
    "link-refused": GOOD,
    "link-refused,file-404": Seen(Failed, DownloadError, YES),
}
# A fresh link would help; the client does not ask for one.
FRESH_LINKS: dict[str, Seen] = {"file-403": GOOD, "file-404": GOOD}
BALANCES: dict[str, float | type[FluxError]] = {
    "credits-integer": 5911.0,
    "credits-as-text": UnexpectedResponse,
}
# What becomes of a file that must be uploaded first.
UPLOADS: dict[str, Seen] = {
    "upload-down": refused(ServerError),
    "upload-down@0-1": GOOD,
    "upload-500": refused(ServerError),
    "upload-500@0-1": GOOD,
    "upload-refused": refused(ServerError),
    "upload-refused@0-1": GOOD,
}
CALLBACKS = [fault.value for fault in Fault if fault.startswith("callback-")]
REFUSED_BY_THE_RECEIVER = {"callback-forged", "callback-stale", "callback-unsigned"}
REDIRECTS = ["file-redirect"]


@attrs.frozen
class SharedTime:
    """The client's virtual time, as the vendor's."""

    clock: Any

    def __call__(self) -> float:
        """Return the present."""
        return BEGIN + float(self.clock.now)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self.clock.sleep(seconds)


@attrs.frozen
class Pair:
    """A sandbox and a client of it."""

    box: Sandbox
    client: FluxClient

    async def seen(self, image: Any = IMAGE, **options: Any) -> tuple[Seen, Any]:
        """Run a batch of one image; return what it came to, and the outcome or error itself."""
        outcomes: list[Outcome] = []
        try:
            async with run_batch(self.client, [image], **options) as batch:
                outcomes = [outcome async for outcome in batch]
        except FluxError as error:
            return Seen(Halted, type(error), error.charge, self.box.ledger.accepted), error
        [outcome] = outcomes
        error = getattr(outcome, "error", None)
        kind, charge = (type(error), error.charge) if error is not None else (None, None)
        return Seen(type(outcome), kind, charge, self.box.ledger.accepted), outcome


@pytest.fixture
async def pair(clock: Any) -> AsyncIterator[Callable[..., Any]]:
    """Make a sandbox with faults and a client of it, in this process and on virtual time unless asked."""
    async with AsyncExitStack() as stack:

        async def make(faults: str | FaultPlan, *, socket: bool = False, virtual: bool = True) -> Pair:
            plan = FaultPlan.parse(faults) if isinstance(faults, str) else faults
            settings = SandboxSettings(
                images="none", seed=1, credits=5916.25, webhook_key=HOOK_KEY, speed=SPEED
            )
            box = Sandbox(settings, plan=plan, clock=SharedTime(clock) if virtual else None)
            await stack.enter_async_context(box)
            url = await box.listen() if socket else VENDOR
            http = None if socket else await stack.enter_async_context(box.http_client())
            real = {"polling": FAST, "limits": Limits(submits=20, window_s=10 / SPEED)}
            more: dict[str, Any] = {"clock": clock} if virtual else real
            if socket and virtual:  # time does not pass during a request
                inner = make_transport(None, Credentials("test", url), version="test")
                more["transport"] = ManagedTransport(inner, clock)
            client = FluxClient("test", url, http_client=http, rng=random.Random(1), **more)
            return Pair(box, await stack.enter_async_context(client))

        yield make


def struck_in(box: Sandbox, faults: str) -> bool:
    """Say whether each of the faults has struck: one that has not tests nothing."""
    return {str(rule.fault) for rule in parse_rules(faults)} <= box.ledger.faults.keys()


FAST = PollPolicy(
    first_s=0.1, interval_s=0.05, sweep_s=1.0, callback_within_s=0.2, not_found_grace_s=5.0, cap_s=1.0
)


@pytest.mark.parametrize("faults", ANSWERS)
async def test_answers(pair: Any, faults: str) -> None:
    """An odd, late or missing answer costs no image its result, and nothing is paid twice."""
    made = await pair(faults)
    seen, outcome = await made.seen()
    assert seen == ANSWERS[faults], outcome
    assert made.box.ledger.double_charges == []
    assert struck_in(made.box, faults)


async def test_a_record_that_never_appears(pair: Any) -> None:
    """After 90 s without a record the task is given up, with an error that says it was paid."""
    seen, _ = await (await pair("late-record=120")).seen()
    assert seen == Seen(Failed, NotFoundError, YES)


@pytest.mark.parametrize("faults", WIRES)
async def test_broken_connections(pair: Any, faults: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks after a submit leaves it in doubt; after a poll it changes nothing."""
    if faults in {"slow-reply", "dripping-reply"}:
        monkeypatch.setattr(flux_async.submitter, "SUBMIT_TIMEOUT_S", 0.3)
    made = await pair(faults, socket=True, virtual=False)
    seen, outcome = await made.seen()
    assert seen == WIRES[faults], outcome
    assert struck_in(made.box, faults)


@pytest.mark.parametrize("faults", FILES)
async def test_files(pair: Any, faults: str, tmp_path: Path) -> None:
    """A file is a whole image with the right suffix; or it is missing, and reported as paid."""
    await assert_file(pair, faults, FILES[faults], tmp_path)


@pytest.mark.parametrize("faults", FRESH_LINKS)
async def test_fresh_links(pair: Any, faults: str, tmp_path: Path) -> None:
    """A link that is refused is exchanged for a fresh one, once."""
    await assert_file(pair, faults, FRESH_LINKS[faults], tmp_path)


async def assert_file(pair: Any, faults: str, expected: Seen, folder: Path) -> None:
    made = await pair(faults, socket=True)
    named_png = {"output_format": "png"} if "png" in faults else {}
    seen, outcome = await made.seen(EditRequest.text_removal(IMAGE, **named_png), directory=folder)
    assert seen == expected, outcome
    assert struck_in(made.box, faults)
    files = list(folder.iterdir())
    assert [file.suffix for file in files] == ([".jpg"] if expected is GOOD else [])
    assert all(file.read_bytes().startswith(b"\xff\xd8\xff") for file in files)


async def test_redirects(pair: Any, tmp_path: Path) -> None:
    """A file host's redirect to a closed port is one job's failure."""
    made = await pair("file-redirect", socket=True)
    seen, _ = await made.seen(directory=tmp_path)
    assert seen == Seen(Failed, DownloadError, YES)
    assert struck_in(made.box, "file-redirect")


@pytest.mark.parametrize("faults", BALANCES)
async def test_balances(pair: Any, faults: str) -> None:
    """The balance may be a whole number; a string is refused rather than guessed at, and costs nothing."""
    made = await pair(faults)
    await made.client.remove_text(IMAGE)
    expected = BALANCES[faults]
    if isinstance(expected, float):
        assert await made.client.credits() == expected
        return
    with pytest.raises(expected) as reported:
        await made.client.credits()
    assert reported.value.charge is Charge.NO


@pytest.mark.parametrize("faults", UPLOADS)
async def test_uploads(pair: Any, faults: str, tmp_path: Path) -> None:
    """A file whose upload fails is uploaded again; it is submitted, and paid, only once it is there."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(ONE_PIXEL["jpeg"])
    made = await pair(faults)
    seen, outcome = await made.seen(photo)
    assert seen == UPLOADS[faults], outcome
    tries = made.box.ledger.faults[str(parse_rules(faults)[0].fault)]
    assert 1 <= tries < RetryPolicy().max_tries if seen == GOOD else tries == RetryPolicy().max_tries


async def test_an_upload_that_failed_is_taken_up_by_the_next_run(
    pair: Any, clock: Any, tmp_path: Path
) -> None:
    """Nothing was spent on it, and the job goes on where it was."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(ONE_PIXEL["jpeg"])
    made = await pair("upload-down@0-200")
    first, _ = await made.seen(photo, journal=tmp_path / "run.sqlite3")
    assert first == refused(ServerError)
    await clock.sleep(200)
    assert (await made.seen(photo, journal=tmp_path / "run.sqlite3"))[0] == GOOD


@pytest.mark.parametrize("faults", CALLBACKS)
async def test_callbacks(pair: Any, faults: str, tmp_path: Path) -> None:
    """Whatever its callbacks are, an image succeeds with the vendor's own link and is paid once."""
    journal = tmp_path / "run.sqlite3"
    made = await pair(faults, virtual=False)
    receiver = WebhookReceiver(journal, key=HOOK_KEY)
    async with receiver, receiving(receiver) as url:
        endpoint = CallbackEndpoint(f"{url}/hook", key=HOOK_KEY)
        seen, outcome = await made.seen(journal=journal, callbacks=endpoint)
    assert seen == GOOD, outcome
    assert outcome.image.result_url.startswith(f"{VENDOR}/files/result/")
    assert made.box.ledger.faults == {faults: 1}
    [task] = made.box.record()["tasks"]
    answers = {delivery["status"] for delivery in task["callbacks"]}
    assert (401 in answers) == (faults in REFUSED_BY_THE_RECEIVER)


@asynccontextmanager
async def receiving(receiver: WebhookReceiver) -> AsyncIterator[str]:
    async with listening(receiver, port=0) as url:
        yield url


@pytest.mark.parametrize(("policy", "tasks"), [("hold", 1), ("resubmit", 2)])
async def test_double_charges(pair: Any, policy: str, tasks: int, tmp_path: Path) -> None:
    """After a dropped answer a second charge needs permission, and the ledger shows it."""
    made = await pair(FaultPlan.script([["drop-reply"]]))
    for _ in range(2):
        await made.seen(in_doubt=policy, journal=tmp_path / "run.sqlite3")
    assert made.box.ledger.accepted == tasks
    assert made.box.ledger.double_charges == ([IMAGE] if tasks == 2 else [])


@pytest.mark.parametrize("faults", ["fail-500", "fail-500,no-refund"])
async def test_refunds(pair: Any, faults: str) -> None:
    """A failed task may or may not be refunded; the client reports the charge as unknown."""
    made = await pair(faults)
    await made.seen()
    assert made.box.credits == 5916.25 - (5.0 if "no-refund" in faults else 0.0)


# --- the table --------------------------------------------------------------------------------------------

OUTCOMES = (ANSWERS, WIRES, FILES, FRESH_LINKS, UPLOADS)
TESTED = (*OUTCOMES, BALANCES, CALLBACKS, REDIRECTS)


def test_every_fault_is_met() -> None:
    """No fault is without its test."""
    named = {rule.fault for table in TESTED for faults in table for rule in parse_rules(faults)}
    assert named == set(Fault)


@pytest.mark.parametrize("faults", [faults for table in OUTCOMES for faults in table if "," not in faults])
def test_the_document_lists_outcome_and_error_of_each_fault(faults: str) -> None:
    """The row of a fault in the document names the outcome and the error that were seen here."""
    expected = next(table[faults] for table in OUTCOMES if faults in table)
    name = str(parse_rules(faults)[0].fault)
    row = re.search(rf"^\| `{name}` \|.*$", DOCUMENT.read_text("utf-8"), flags=re.MULTILINE)
    assert row is not None, f"{name} has no row"
    words = {Halted: "run halts"}.get(expected.outcome, f"`{expected.outcome.__name__}`")
    assert words in row[0]
    assert expected.error is None or f"`{expected.error.__name__}`" in row[0]
    if faults == name:
        charged = {NO: "no", MAYBE: "perhaps", YES: "yes", None: "yes"}[expected.charge]
        assert row[0].split(" | ")[3] in {charged, "as without it"}
