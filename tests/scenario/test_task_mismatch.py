"""The right result for the right image: every task id is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    Charge,
    ConnectionLost,
    Echo,
    EditRequest,
    Failed,
    FluxClient,
    GenerateRequest,
    InDoubt,
    InDoubtPolicy,
    InsufficientCreditsError,
    InvalidInput,
    Job,
    JobKey,
    LocalImage,
    Outcome,
    RetryPolicy,
    Succeeded,
    TaskMismatch,
    TooManyUnknownAnswers,
    UnexpectedResponse,
    adopt,
)
from flux_async.api.envelope import WireResponse
from flux_async.batch.progress import BatchProgress
from flux_async.batch.runner import run_batch
from flux_async.cli.display import RunDisplay
from flux_async.cli.dry_run import run_dry
from flux_async.cli.folder_commands import what_to_retry
from flux_async.cli.input_rows import InputRow
from flux_async.cli.run_command import RunCommand
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption
from flux_async.cli.status import show_status, status_of
from flux_async.cli.terminal import Output
from flux_async.job_state import JobState, Saved
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import Journal
from flux_async.transport import Answered, Unknown
from scripted_vendor import ScriptedVendor

pytestmark = pytest.mark.both_apis

URLS = [f"https://pictures.example/{number}.jpg" for number in range(8)]


async def run(client: FluxClient, path: Path | str, images: list[Any], **options: Any) -> dict[str, Outcome]:
    """Run a batch and return its outcomes by image."""
    async with run_batch(client, images, journal=path, **options) as batch:
        return {str(o.job.request.input_image): o async for o in batch if o.job is not None}  # type: ignore[union-attr]


# --- an id that another submit has --------------------------------------------------------------------------


async def test_one_id_for_three_submits_is_taken_once(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """Three submits are answered with one id: the first has its result, two are in doubt with the reason."""
    echoing.answers_with = lambda _: 0
    outcomes = await run(client, tmp_path / "j.sqlite3", URLS[:3])
    kinds = [type(outcomes[url]) for url in URLS[:3]]
    assert sorted(kind.__name__ for kind in kinds) == ["InDoubt", "InDoubt", "Succeeded"]
    (url,) = [url for url in URLS[:3] if isinstance(outcomes[url], Succeeded)]
    assert echoing.tasks_of(url) == ["t0"]
    for outcome in outcomes.values():
        if isinstance(outcome, InDoubt):
            assert isinstance(outcome.error, TaskMismatch)
            assert (outcome.error.charge, outcome.error.refused_task_id) == (Charge.MAYBE, "t0")
            assert "task t0" in str(outcome.error)


async def test_an_id_of_an_earlier_run_is_not_taken(
    echoing: ScriptedVendor, tmp_path: Path, transport: Any
) -> None:
    """The journal has the ids of earlier runs; the error names the job that has the id."""
    path = tmp_path / "j.sqlite3"
    for expected in (Succeeded, InDoubt):
        async with transport.client() as client:
            index = 0 if expected is Succeeded else 1
            echoing.answers_with = lambda _: 0
            outcomes = await run(client, path, [URLS[index]])
            assert isinstance(outcomes[URLS[index]], expected)
    error = outcomes[URLS[1]].error  # type: ignore[union-attr]
    assert isinstance(error, TaskMismatch)
    assert "Task t0 belongs to job" in error.message


async def test_an_id_of_an_earlier_submit_of_the_same_job_is_not_taken(
    echoing: ScriptedVendor, tmp_path: Path, transport: Any
) -> None:
    """A task that failed does not become the task of the submit that was paid after it."""
    path = tmp_path / "j.sqlite3"
    echoing.answers_with, echoing.ends = (lambda _: 0), lambda _: 3
    async with transport.client() as client:
        outcomes = await run(client, path, URLS[:1], retry=RetryPolicy(max_paid_attempts=2))
    assert isinstance(outcomes[URLS[0]], InDoubt)
    assert len(echoing.sent) == 2


async def test_one_client_hands_out_an_id_once(client: FluxClient, echoing: ScriptedVendor) -> None:
    """The second caller receives an error with both facts: the repeated id, and a possible charge."""
    echoing.answers_with = lambda _: 0
    assert await client.submit(EditRequest.text_removal(URLS[0])) == "t0"
    with pytest.raises(TaskMismatch, match="task t0, which another submit of this client has") as caught:
        await client.submit(EditRequest.text_removal(URLS[1]))
    assert (caught.value.charge, caught.value.task_id) == (Charge.MAYBE, None)
    assert caught.value.refused_task_id == "t0"


# --- the record of another job ------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [1, 3], ids=["succeeded", "failed"])
async def test_the_record_of_another_job_is_not_the_result_and_is_offered_to_that_job(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, flag: int
) -> None:
    """One answer is dropped and its task's id answers the next submit: both jobs end with their own image."""
    path = tmp_path / "j.sqlite3"
    echoing.ends = lambda _: flag
    echoing.answers_with = lambda number: Unknown("dropped") if number == 0 else 0
    outcomes = await run(client, path, URLS[:1])
    assert isinstance(outcomes[URLS[0]], InDoubt)
    outcomes = await run(client, path, URLS[1:2])
    doubt = outcomes[URLS[1]]
    assert isinstance(doubt, InDoubt)
    assert isinstance(doubt.error, TaskMismatch)
    assert doubt.error.charge is Charge.MAYBE
    assert doubt.error.refused_task_id == "t0"
    assert URLS[0] in doubt.error.message
    assert len(echoing.sent) == 2
    outcomes = await run(client, path, URLS[:2])
    first, second = outcomes[URLS[0]], outcomes[URLS[1]]
    if flag == 1:
        assert isinstance(first, Succeeded)
        assert (first.image.task_id, first.image.echo) == ("t0", Echo.CONFIRMED)
    else:
        assert isinstance(first, Failed)
        assert first.error.task_id == "t0"
    assert isinstance(second, InDoubt)
    assert len(echoing.sent) == 2


async def test_two_answers_that_are_exchanged_are_set_right_without_another_charge(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """Each of two jobs is answered with the other's task: neither takes it, and later both have theirs."""
    path = tmp_path / "j.sqlite3"
    echoing.answers_with = lambda number: 1 - number
    first = await run(client, path, URLS[:2])
    again = await run(client, path, URLS[:2])
    outcomes = first | again
    for url in URLS[:2]:
        outcome = outcomes[url]
        assert isinstance(outcome, Succeeded)
        assert [outcome.image.task_id] == echoing.tasks_of(url)
        assert outcome.image.echo is Echo.CONFIRMED
    assert len(echoing.sent) == 2


async def test_answers_that_arrive_one_submit_late_give_no_wrong_result(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """Eight submits, each answered with the task of the one before: later runs set seven of them right."""
    path = tmp_path / "j.sqlite3"
    echoing.answers_with = lambda number: number - 1 if number else Unknown("dropped")
    outcomes: dict[str, Outcome] = {}
    for _ in range(3):
        outcomes |= await run(client, path, URLS)
    for url in URLS[:-1]:
        outcome = outcomes[url]
        assert isinstance(outcome, Succeeded)
        assert [outcome.image.task_id] == echoing.tasks_of(url)
    assert isinstance(outcomes[URLS[-1]], InDoubt)
    assert len(echoing.sent) == 8


async def test_a_killed_run_compares_the_first_record_after_it_resumes(
    echoing: ScriptedVendor, tmp_path: Path, transport: Any
) -> None:
    """A wrong id that was written down before the process died is found out by the next one."""
    path = tmp_path / "j.sqlite3"
    echoing.answers_with = lambda number: Unknown("dropped") if number == 0 else 0
    echoing.ends = lambda _: 0
    async with transport.client() as client:
        await run(client, path, URLS[:1])
        outcomes = await run(client, path, URLS[1:2], timeout=30.0)
        assert isinstance(outcomes[URLS[1]], Failed)  # its deadline passed: the journal has it as submitted
    echoing.ends = lambda _: 1
    async with transport.client() as client:
        outcomes = await run(client, path, URLS[1:2])
    assert isinstance(outcomes[URLS[1]], InDoubt)
    assert isinstance(outcomes[URLS[1]].error, TaskMismatch)


async def test_the_same_image_in_two_formats_is_not_confused(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """Prompt, image and model are the same; the record shows the other job's format."""
    path = tmp_path / "j.sqlite3"
    jobs = [EditRequest.text_removal(URLS[0], output_format=kind) for kind in ("png", "jpeg")]
    echoing.answers_with = lambda number: 1 - number
    async with run_batch(client, jobs, journal=path) as batch:
        outcomes = [outcome async for outcome in batch]
    async with run_batch(client, jobs, journal=path) as batch:
        outcomes += [outcome async for outcome in batch]
    for outcome in outcomes:
        if isinstance(outcome, Succeeded):
            number = int(outcome.image.task_id[1:])
            assert echoing.sent[number]["outputFormat"] == outcome.job.request.output_format
    assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == 2


async def test_two_jobs_with_one_request_each_keep_their_task(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """The records of two equal requests are alike: each is a confirmation for both."""
    request = EditRequest.text_removal(URLS[0])
    jobs = [Job(key=JobKey(key), request=request) for key in ("a", "b")]
    async with run_batch(client, jobs, journal=tmp_path / "j.sqlite3") as batch:
        outcomes = [outcome async for outcome in batch]
    assert {type(outcome) for outcome in outcomes} == {Succeeded}
    assert {outcome.image.task_id for outcome in outcomes if isinstance(outcome, Succeeded)} == {"t0", "t1"}


async def test_the_record_of_an_uploaded_image_shows_where_it_was_uploaded(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, transport: Any, make: Any
) -> None:
    """The echo holds the address of the attempt, also after a resume; another upload's is another job's."""
    path = tmp_path / "j.sqlite3"
    numbers = iter(range(100))
    transport.script["file-url-upload"] = [
        lambda _: make.answer({"downloadUrl": f"https://uploads.example/{next(numbers)}.jpg"})
    ]
    outcomes = await run(client, path, URLS[:2], via_upload=True)
    echoes = [outcome.image.echo for outcome in outcomes.values() if isinstance(outcome, Succeeded)]
    assert echoes == [Echo.CONFIRMED, Echo.CONFIRMED]
    echoing.answers_with = lambda number: 3 if number == 2 else 2
    outcomes = await run(client, path, URLS[2:4], via_upload=True)
    outcomes |= await run(client, path, URLS[2:4], via_upload=True)
    for url in URLS[2:4]:
        outcome = outcomes[url]
        assert isinstance(outcome, Succeeded)
        assert outcome.image.task_id == ("t2" if url == URLS[2] else "t3")
    assert len(echoing.sent) == 4


def translated(number: int, sent: dict[str, Any]) -> str:
    """Show the request of a vendor that translates every prompt and shows images as they were sent."""
    return json.dumps(sent | {"prompt": f"übersetzt {number}"})


def without_prompt(_: int, sent: dict[str, Any]) -> str:
    """Show the request of a vendor that leaves prompts out."""
    return json.dumps({name: value for name, value in sent.items() if name != "prompt"})


@pytest.mark.parametrize("shows", [translated, without_prompt], ids=["translated", "no prompt"])
async def test_the_image_of_another_job_is_a_contradiction_with_any_prompt(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, shows: Any
) -> None:
    """Each of two jobs is answered with the other's task: neither takes it, and later both have theirs."""
    path = tmp_path / "j.sqlite3"
    echoing.shows, echoing.answers_with = shows, lambda number: 1 - number
    outcomes = await run(client, path, URLS[:2])
    outcomes |= await run(client, path, URLS[:2])
    for url in URLS[:2]:
        outcome = outcomes[url]
        assert isinstance(outcome, Succeeded)
        assert [outcome.image.task_id] == echoing.tasks_of(url)
        assert outcome.image.echo is (Echo.UNRECOGNISED if shows is translated else Echo.ABSENT)
    assert len(echoing.sent) == 2


@pytest.mark.parametrize("shows", [translated, without_prompt], ids=["translated", "no prompt"])
async def test_answers_that_arrive_one_submit_late_give_no_wrong_result_of_a_vendor_that_translates(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, shows: Any
) -> None:
    """Eight submits, each answered with the task of the one before: later runs set seven of them right."""
    path = tmp_path / "j.sqlite3"
    echoing.shows = shows
    echoing.answers_with = lambda number: number - 1 if number else Unknown("dropped")
    outcomes: dict[str, Outcome] = {}
    for _ in range(3):
        outcomes |= await run(client, path, URLS)
    for url in URLS[:-1]:
        outcome = outcomes[url]
        assert isinstance(outcome, Succeeded)
        assert [outcome.image.task_id] == echoing.tasks_of(url)
    assert isinstance(outcomes[URLS[-1]], InDoubt)
    assert len(echoing.sent) == 8


async def test_the_prompt_decides_between_two_edits_of_one_image(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """A third job has the task of one of them: it is offered to the one that sent the prompt, or to none."""
    path = tmp_path / "j.sqlite3"
    edits = [EditRequest(prompt=prompt, input_image=URLS[0]) for prompt in ("first", "second")]
    echoing.answers_with = lambda number: Unknown("dropped") if number < 2 else number - 2
    for edit in edits:
        await run(client, path, [edit])
    for shows, offered in ((translated, False), (lambda _, sent: json.dumps(sent), True)):
        echoing.shows = shows
        url = URLS[2] if offered else URLS[1]
        outcome = (await run(client, path, [url]))[url]
        assert isinstance(outcome, InDoubt)
        assert isinstance(outcome.error, TaskMismatch)
        async with Journal(path, clock=client.session.clock) as journal:
            in_doubt = await journal.jobs(JobState.IN_DOUBT)
            found = {
                job.read().prompt: [task.task_id for task in await journal.offers_to(job.number)]  # type: ignore[union-attr]
                for job in in_doubt
            }
            assert (found["first"], found["second"]) == ([], ["t1"] if offered else [])


async def test_two_edits_of_one_image_with_rewritten_prompts_are_marked(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """Neither image nor prompt identifies the job: both have a result that is marked."""
    echoing.shows = translated
    edits = [EditRequest(prompt=prompt, input_image=URLS[0]) for prompt in ("first", "second")]
    async with run_batch(client, edits, journal=tmp_path / "j.sqlite3") as batch:
        outcomes = [outcome async for outcome in batch]
    echoes = [outcome.image.echo for outcome in outcomes if isinstance(outcome, Succeeded)]
    assert echoes == [Echo.UNRECOGNISED, Echo.UNRECOGNISED]


async def test_a_task_found_by_its_image_is_not_offered_again_once_its_record_contradicts(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """The account echoes verbatim, and the prompt is not this job's: one poll, and it stays in doubt."""
    path = tmp_path / "j.sqlite3"
    for url in URLS[:3]:
        await run(client, path, [url])
    echoing.shows = translated
    echoing.answers_with = lambda number: Unknown("dropped") if number == 3 else 3
    for url in URLS[3:5]:
        await run(client, path, [url])
    outcome = (await run(client, path, URLS[3:4]))[URLS[3]]
    assert isinstance(outcome, InDoubt)
    assert isinstance(outcome.error, TaskMismatch)
    async with Journal(path, clock=client.session.clock) as journal:
        assert [await journal.offers_to(number) for number in (4, 5)] == [[], []]
    assert len(echoing.sent) == 5


# --- the record of an unknown request -----------------------------------------------------------------------


def rehosted(number: int, sent: dict[str, Any]) -> str:
    """Show the request of a vendor that copies images and translates prompts."""
    return json.dumps(sent | {"inputImage": f"https://copies.example/{number}.jpg", "prompt": "übersetzt"})


async def test_a_vendor_that_never_echoes_verbatim_stays_usable(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every image has its result, marked as unrecognised; one warning is logged for all of them."""
    echoing.shows = rehosted
    outcomes = await run(client, tmp_path / "j.sqlite3", URLS)
    for url in URLS:
        outcome = outcomes[url]
        assert isinstance(outcome, Succeeded)
        assert [outcome.image.task_id] == echoing.tasks_of(url)
        assert outcome.image.echo is Echo.UNRECOGNISED
    warnings = [record for record in caplog.records if "shows another request" in record.getMessage()]
    assert [record.levelname for record in warnings] == ["WARNING"]


@pytest.mark.parametrize("restart", [False, True], ids=["one run", "two runs"])
async def test_an_unknown_record_is_in_doubt_once_three_were_verbatim(
    echoing: ScriptedVendor, tmp_path: Path, transport: Any, restart: bool
) -> None:
    """The journal records that this account echoes verbatim: from then on, another request contradicts."""
    path = tmp_path / "j.sqlite3"
    echoing.shows = lambda number, sent: rehosted(number, sent) if number in {2, 4} else json.dumps(sent)
    parts = [URLS[:4], URLS[4:5]] if restart else [[*URLS[:4], *URLS[4:5]]]
    outcomes: dict[str, Outcome] = {}
    for part in parts:
        async with transport.client() as client:
            for url in part:  # one after another, so that their order is known
                outcomes |= await run(client, path, [url])
    third, fifth = outcomes[URLS[2]], outcomes[URLS[4]]
    assert isinstance(third, Succeeded)
    assert third.image.echo is Echo.UNRECOGNISED
    assert isinstance(fifth, InDoubt)
    assert isinstance(fifth.error, TaskMismatch)
    assert "https://copies.example/4.jpg" in fifth.error.message
    assert fifth.error.belongs_to is None


@pytest.mark.parametrize("restart", [False, True], ids=["one run", "two runs"])
@pytest.mark.parametrize("shows", [translated, without_prompt], ids=["translated", "no prompt"])
async def test_an_unknown_image_is_in_doubt_once_three_images_were_verbatim(
    echoing: ScriptedVendor,
    tmp_path: Path,
    transport: Any,
    shows: Any,
    restart: bool,
) -> None:
    """The prompts never match: the images alone prove that the account echoes them, also in a later run."""
    path = tmp_path / "j.sqlite3"
    echoing.shows = lambda number, sent: (rehosted if number in {2, 4} else shows)(number, sent)
    outcomes: dict[str, Outcome] = {}
    for part in [URLS[:4], URLS[4:5]] if restart else [URLS[:5]]:
        async with transport.client() as client:
            for url in part:  # one after another, so that their order is known
                outcomes |= await run(client, path, [url])
    assert all(isinstance(outcomes[url], Succeeded) for url in URLS[:4])
    fifth = outcomes[URLS[4]]
    assert isinstance(fifth, InDoubt)
    assert isinstance(fifth.error, TaskMismatch)


async def test_a_vendor_that_copies_images_stays_usable_after_verbatim_prompts(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """Generated images prove that prompts are echoed, and nothing about image addresses."""
    path = tmp_path / "j.sqlite3"
    words = [GenerateRequest(prompt=f"a lighthouse {number}") for number in range(4)]
    async with run_batch(client, words, journal=path) as batch:
        assert [outcome.image.echo async for outcome in batch] == [Echo.CONFIRMED] * 4  # type: ignore[union-attr]
    echoing.shows = lambda number, sent: json.dumps(sent | {"inputImage": f"https://copies.example/{number}"})
    outcomes = await run(client, path, URLS)
    assert all(isinstance(outcomes[url], Succeeded) for url in URLS)


async def test_a_prompt_that_the_vendor_may_translate_is_no_contradiction(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """After verbatim records of English prompts, a translated one of the right image has its result."""
    path = tmp_path / "j.sqlite3"
    await run(client, path, URLS[:4])
    echoing.shows = lambda _, sent: json.dumps(sent | {"prompt": "Remove the text"})
    outcomes = await run(client, path, [EditRequest(prompt="Text entfernen", input_image=URLS[4])])
    outcome = outcomes[URLS[4]]
    assert isinstance(outcome, Succeeded)
    assert outcome.image.echo is Echo.UNRECOGNISED


async def test_no_echo_is_no_contradiction(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Records without their request, or with half of it, end in results as they did."""
    path = tmp_path / "j.sqlite3"
    await run(client, path, URLS[:4])
    parts: list[Any] = [None, "{broken", json.dumps({"aspectRatio": "1:1"}), ""]
    echoing.shows = lambda number, _: parts[number - 4]
    outcomes = await run(client, path, URLS[4:])
    for url in URLS[4:]:
        outcome = outcomes[url]
        assert isinstance(outcome, Succeeded)
        assert outcome.image.echo is Echo.ABSENT
    assert not [record for record in caplog.records if "another request" in record.getMessage()]


async def test_many_contradictions_halt_the_run(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """Records of foreign requests are answers that make no sense: not all of sixty are paid."""
    path = tmp_path / "j.sqlite3"
    await run(client, path, URLS[:3])
    echoing.shows = rehosted
    images = [f"https://pictures.example/many/{number}.jpg" for number in range(60)]
    with pytest.raises(TooManyUnknownAnswers):
        await run(client, path, images)
    assert len(echoing.sent) < 50


# --- one call -----------------------------------------------------------------------------------------------


async def test_one_call_reports_the_echo_of_the_record(client: FluxClient, echoing: ScriptedVendor) -> None:
    """``remove_text`` compares the record with its request; a ``wait`` for a bare id compares nothing."""
    image = await client.remove_text(URLS[0])
    assert image.echo is Echo.CONFIRMED
    assert (await client.wait(image.task_id)).echo is None
    request = EditRequest.text_removal(URLS[0])
    assert (await client.wait(image.task_id, request=request)).echo is Echo.CONFIRMED
    local = EditRequest.text_removal(LocalImage(sha256="0" * 64))
    assert (await client.wait(image.task_id, request=local)).echo is None
    echoing.shows = rehosted
    assert (await client.remove_text(URLS[1])).echo is Echo.UNRECOGNISED


@pytest.mark.parametrize("flag", [1, 3], ids=["succeeded", "failed"])
async def test_one_call_refuses_the_task_of_another(
    client: FluxClient, echoing: ScriptedVendor, flag: int
) -> None:
    """The task of a submit without an answer answers the next submit: no result, and in doubt."""
    echoing.ends = lambda _: flag
    echoing.answers_with = lambda number: Unknown("dropped") if number == 0 else 0
    with pytest.raises(ConnectionLost):
        await client.remove_text(URLS[0])
    with pytest.raises(TaskMismatch) as caught:
        await client.remove_text(URLS[1])
    assert (caught.value.charge, caught.value.task_id) == (Charge.MAYBE, None)
    assert caught.value.refused_task_id == "t0"
    assert URLS[0] in caught.value.message


@pytest.mark.parametrize("shows", [translated, without_prompt], ids=["translated", "no prompt"])
async def test_one_call_refuses_the_image_of_another_with_any_prompt(
    client: FluxClient, echoing: ScriptedVendor, shows: Any
) -> None:
    """A client remembers the images of its submits."""
    echoing.shows = shows
    echoing.answers_with = lambda number: Unknown("dropped") if number == 0 else 0
    with pytest.raises(ConnectionLost):
        await client.remove_text(URLS[0])
    with pytest.raises(TaskMismatch, match=URLS[0]):
        await client.remove_text(URLS[1])


async def test_one_call_refuses_an_unknown_record_once_three_were_verbatim(
    client: FluxClient, echoing: ScriptedVendor
) -> None:
    """After three verbatim records the client expects the account to echo."""
    for url in URLS[:3]:
        await client.remove_text(url)
    echoing.shows = rehosted
    with pytest.raises(TaskMismatch, match="https://copies.example/3.jpg"):
        await client.remove_text(URLS[3])


# --- ids in odd answers -------------------------------------------------------------------------------------

HEX = "c0d0c0d0c0d0c0d0c0d0c0d0c0d0c0d0"


def said(body: str, status: int = 200) -> Answered:
    """Make an answer of these very characters."""
    return Answered(WireResponse(status=status, body=body.encode()))


ODD = {
    "another name": (said('{"code":200,"msg":"success","data":{"task_id":"t0"}}'), "t0"),
    "a bare string": (said(f'{{"code":200,"msg":"success","data":"{HEX}"}}'), HEX),
    "a code 500 that names one": (said('{"code":500,"msg":"task_id=t0-late","data":null}'), "t0-late"),
    "a page": (said(f"<html>Bad gateway. Task {HEX} is queued.</html>", 502), HEX),
    "JSON cut short": (said(f'{{"code":200,"data":{{"taskId":"{HEX}"'), HEX),
    "a connection cut short": (Unknown("dropped", f'{{"code":200,"data":{{"taskId":"{HEX}",'.encode()), HEX),
}


@pytest.mark.parametrize(("answer", "task_id"), ODD.values(), ids=ODD)
async def test_an_id_in_an_odd_answer_is_kept_and_shown(
    client: FluxClient,
    echoing: ScriptedVendor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answer: Any,
    task_id: str,
) -> None:
    """The answer is kept with the attempt; the error, its stored message and ``status`` name the id in it."""
    echoing.answers_with = lambda _: answer
    path = tmp_path / JOURNAL
    outcomes = await run(client, path, URLS[:1])
    doubt = outcomes[URLS[0]]
    assert isinstance(doubt, InDoubt)
    assert task_id in doubt.error.answer
    assert f"The answer may name the task: {task_id}." in doubt.error.message
    show_status(tmp_path, as_json=False)
    assert f"its task may be {task_id}. If it is: `flux-async adopt" in capsys.readouterr().out
    async with Journal(path, clock=client.session.clock) as journal:
        assert await journal.candidates(1) == [task_id]


async def test_a_whole_number_is_a_task_id(client: FluxClient, echoing: ScriptedVendor, make: Any) -> None:
    """``{"taskId": 12345}`` is an accepted submit, whose record names the task as a number, too."""
    echoing.answers_with = lambda _: make.answer({"taskId": 12345})
    echoing.script["record-info"] = [lambda _: make.record(1, 12345, paramJson=json.dumps(echoing.sent[0]))]
    image = await client.remove_text(URLS[0])
    assert (image.task_id, image.echo) == ("12345", Echo.CONFIRMED)


async def test_a_single_submit_names_the_ids_of_an_odd_answer(
    client: FluxClient, echoing: ScriptedVendor
) -> None:
    """Without a journal the error is all there is; the ids of the request itself are none of the task."""
    image = f"https://pictures.example/{HEX}.jpg"
    echoing.answers_with = lambda _: said(f'{{"code":200,"data":{{"task_id":"t0","for":"{HEX}"}}}}')
    with pytest.raises(UnexpectedResponse, match=r"The answer may name the task: t0\.") as caught:
        await client.remove_text(image)
    assert json.loads(caught.value.answer)["data"] == {"task_id": "t0", "for": HEX}
    assert caught.value.charge is Charge.MAYBE


async def test_a_refusal_keeps_no_answer(client: FluxClient, echoing: ScriptedVendor, make: Any) -> None:
    """Nothing was charged, so there is no task to find."""
    echoing.answers_with = lambda _: make.answer({"requestId": HEX}, 402)
    with pytest.raises(InsufficientCreditsError) as caught:
        await client.submit(EditRequest.text_removal(URLS[0]))
    assert caught.value.answer == ""


@pytest.mark.parametrize("shows", [translated, without_prompt], ids=["translated", "no prompt"])
async def test_a_task_about_the_image_of_another_job_is_not_adopted(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, shows: Any
) -> None:
    """Whatever its prompt, and although the API named it for the job."""
    path = tmp_path / "j.sqlite3"
    echoing.shows = shows
    echoing.answers_with = lambda number: said(f'{{"code":200,"data":{{"task_id":"t{1 - number}"}}}}')
    for url in URLS[:2]:
        await run(client, path, [url])
    async with Journal(path, clock=client.session.clock) as journal:
        first, second = await journal.jobs(JobState.IN_DOUBT)
    with pytest.raises(InvalidInput, match=f"the request of job {second.job.key}"):
        await adopt(client, path, first.job.key, "t1")


@pytest.mark.parametrize("kind", ["confirmed", "absent", "unknown", "another job's"])
async def test_what_a_person_may_adopt(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, kind: str
) -> None:
    """An unknown record only where the API named the task for this job; another job's task never."""
    path = tmp_path / "j.sqlite3"
    echoing.answers_with = lambda number: said(f'{{"code":200,"data":{{"task_id":"t{number}"}}}}')
    for url in URLS[:2]:
        await run(client, path, [url])
    if kind == "unknown":
        echoing.shows = rehosted
    elif kind == "absent":
        echoing.shows = lambda *_: None
    async with Journal(path, clock=client.session.clock) as journal:
        first, second = await journal.jobs(JobState.IN_DOUBT)
    if kind != "absent":
        with pytest.raises(InvalidInput, match="was made from") as caught:
            await adopt(client, path, first.job.key, "t1")
        assert (second.job.key in str(caught.value)) is (kind != "unknown")
    expected = {"confirmed": Echo.CONFIRMED, "absent": Echo.ABSENT, "unknown": Echo.UNRECOGNISED}
    if kind in expected:
        adopted = await adopt(client, path, first.job.key, "t0")
        assert (adopted.key, adopted.record.task_id, adopted.echo) == (first.job.key, "t0", expected[kind])
    if kind == "unknown":
        # The user is not asked again: the next run takes the result, and keeps the mark.
        client.session.submitter.sent.confirmed["kontext"] = 3
        outcomes = await run(client, path, URLS[:1])
        outcome = outcomes[URLS[0]]
        assert isinstance(outcome, Succeeded)
        assert (outcome.image.task_id, outcome.image.echo) == ("t0", Echo.UNRECOGNISED)


async def command(
    vendor: ScriptedVendor, folder: Path, select: Any, capsys: pytest.CaptureFixture[str], **options: Any
) -> str:
    """Run a command in a folder; return its messages in one line."""
    done = RunCommand(
        options=RunOptions(folder=folder, download=False, **options),
        select=select,
        make_client=vendor.client,
        display=RunDisplay(output=Output(), prints_results=False),
        interruption=Interruption(),
        clock=vendor.clock,
    )
    await done.run()
    return " ".join(capsys.readouterr().err.split())


def rows_of(*urls: str) -> list[InputRow]:
    """Return addresses as arguments of a command."""
    return [InputRow(source="argument", line=line, image=url) for line, url in enumerate(urls, start=1)]


def take(*urls: str) -> Any:
    """Choose these images."""
    return lambda reader, _: reader.read(rows_of(*urls))


@pytest.fixture
async def found(client: FluxClient, echoing: ScriptedVendor, tmp_path: Path) -> ScriptedVendor:
    """The answer for the first image was lost; later ones are answered with the task of the one before."""
    echoing.answers_with = lambda number: number - 1 if number else Unknown("dropped")
    await run(client, tmp_path / JOURNAL, URLS[:1])
    return echoing


async def test_the_end_of_a_run_lists_jobs_in_doubt_that_can_be_fetched_free_of_charge(
    found: ScriptedVendor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The task of one image was found after its outcome; that of the other is unknown."""
    both = take(*URLS[:2])
    reported = await command(found, tmp_path, both, capsys)
    free = "The task of 1 image in doubt was found: the same command again fetches its image, free of charge."
    assert free in reported
    with JournalReader(tmp_path / JOURNAL) as reader:
        first, second = reader.jobs(JobState.IN_DOUBT)
        assert reader.found_task(first.number) == "t0"
    adopt = f"`flux-async adopt {tmp_path} {second.job.key} TASK_ID`"
    assert "In doubt, perhaps paid: 1. Look for the task at kie.ai/logs." in reported
    assert f"kie.ai/logs. If it is there: {adopt}." in reported
    reported = await command(found, tmp_path, both, capsys)
    assert "1 of 2 paid by an earlier run: taken up without a submit." in reported
    assert "was found" not in reported
    assert len(found.sent) == 2


@pytest.mark.parametrize("how", ["retry", "resubmit"])
async def test_a_second_charge_is_announced_only_for_jobs_in_doubt_without_a_found_task(
    found: ScriptedVendor, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Of two images in doubt one has its task found: it is fetched, and the other is paid for again."""
    await command(found, tmp_path, take(*URLS[:2]), capsys)
    found.answers_with = lambda number: number
    if how == "retry":
        choice = what_to_retry(failed=False, in_doubt=True)
        reported = await command(found, tmp_path, choice, capsys, repeats=("--in-doubt",))
        said = "1 image gets another try, for up to 5 credits. Those in doubt may be paid already."
        assert said in " ".join(reported.split())
        assert "1 image that is paid and not here yet: fetched, free of charge." in reported
    else:
        order = RunOptions(folder=tmp_path, download=False, in_doubt=InDoubtPolicy.RESUBMIT)
        run_dry(order, rows_of(*URLS[:2]), as_json=True)
        counts = json.loads(capsys.readouterr().out)
        assert (counts["credits"], counts["in_doubt"]) == (5, 1)
        reported = await command(found, tmp_path, take(*URLS[:2]), capsys, in_doubt=InDoubtPolicy.RESUBMIT)
        assert "1 of 2 paid by an earlier run: taken up without a submit." in reported
    assert "1 image needs about 5 credits" in reported
    assert [sent["inputImage"] for sent in found.sent] == [URLS[0], URLS[1], URLS[1]]
    with JournalReader(tmp_path / JOURNAL) as reader:
        assert [stored.job.task_id for stored in reader.jobs(JobState.DONE)] == ["t0", "t2"]


async def test_unrecognised_results_are_listed(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end of a run names the command that lists them, with image, key and where the result is."""
    echoing.shows = lambda number, sent: rehosted(number, sent) if number else json.dumps(sent)
    await run(client, tmp_path / JOURNAL, URLS[:1])
    reported = await command(echoing, tmp_path, take(*URLS[:3]), capsys)
    assert (
        "Results whose record shows another request than was sent: 2. Compare them with their images; "
        f"`flux-async status {tmp_path}` lists them."
    ) in reported
    show_status(tmp_path, as_json=True)
    listed = json.loads(capsys.readouterr().out)["unrecognised"]
    with JournalReader(tmp_path / JOURNAL) as reader:
        _, *jobs = [(stored.job.key, stored.job.task_id, stored.job.result_url) for stored in reader.jobs()]
    assert [(one["key"], one["task_id"], one["result_url"]) for one in listed] == jobs
    assert [(one["image"], one["file"]) for one in listed] == [(url, None) for url in URLS[1:3]]
    show_status(tmp_path, as_json=False)
    out = capsys.readouterr().out
    for url, (key, _, result_url) in zip(URLS[1:3], jobs, strict=True):
        assert f"unrecognised: {url} {key}: {result_url}" in out


async def test_the_list_of_unrecognised_results_names_their_files(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also that of a result which has not come yet."""
    echoing.shows = rehosted
    await run(client, tmp_path / JOURNAL, URLS[:2])
    async with Journal(tmp_path / JOURNAL, clock=client.session.clock) as journal:
        first, second = await journal.jobs(JobState.DONE)
        event = Saved(at=0.0, file="0.png", sha256="0" * 64)
        delivered = attrs.evolve(first.job, file="0.png")
        await journal.record(first.number, delivered, event, before=first.job)
        waiting = attrs.evolve(second.job, state=JobState.SUBMITTED, result_url=None)
        await journal.record(second.number, waiting, event, before=second.job)
    show_status(tmp_path, as_json=False)
    out = capsys.readouterr().out
    assert f"unrecognised: {URLS[0]} {first.job.key}: {tmp_path / 'images' / '0.png'}" in out
    assert f"unrecognised: {URLS[1]} {second.job.key}: no result yet" in out


async def test_without_callbacks_nothing_waits_for_one(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path
) -> None:
    """An image in doubt is counted as in doubt at once."""
    echoing.answers_with = lambda _: Unknown("dropped")
    seen: list[BatchProgress] = []
    for _ in range(2):
        await run(client, tmp_path / "j.sqlite3", URLS[:2], on_progress=seen.append)
    assert {progress.waiting for progress in seen} == {0}
    assert max(progress.in_doubt for progress in seen) == 2


async def test_status_counts_records_of_unknown_requests_and_names_found_tasks(
    client: FluxClient, echoing: ScriptedVendor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text and as data: confirmed and unconfirmed records, and the task that another poll has found."""
    path = tmp_path / JOURNAL
    echoing.shows = lambda number, sent: rehosted(number, sent) if number == 0 else json.dumps(sent)
    echoing.answers_with = lambda number: Unknown("dropped") if number == 1 else min(number, 1)
    for url in URLS[:3]:
        await run(client, path, [url])
    with JournalReader(path) as reader:
        reported = status_of(reader, None)
    assert reported["echoes"] == {"confirmed": 0, "absent": 0, "unrecognised": 1}
    assert [doubt["found_task"] for doubt in reported["in_doubt"]] == ["t1", None]
    assert [doubt["candidates"] for doubt in reported["in_doubt"]] == [[], []]
    assert reported["credits"] == {"spent": 5.0, "measured": 5.0, "perhaps": 10.0, "saved": 0.0}
    show_status(tmp_path, as_json=False)
    out = capsys.readouterr().out
    assert "unrecognised: 1 record shows another request than was sent" in out
    assert "its task is t1. Fetch its image with `flux-async retry" in out
