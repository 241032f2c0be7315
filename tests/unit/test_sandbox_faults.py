"""The sandbox's faults: names and sentences, rules, shares, windows, scripts, what single requests ask."""

from __future__ import annotations

import random
from pathlib import Path

import attrs
import pytest

from flux_async.sandbox import Fault, FaultPlan, SandboxSettings
from flux_async.sandbox.faults import (
    ALWAYS,
    Rule,
    Target,
    faults_of_url,
    list_of_faults,
    parse_rules,
    read_script,
)
from flux_async.sandbox.simulator import Vendor

IMAGE = "https://example.com/poster.jpg"
LATE, MISSING, DROPPED = Fault.CALLBACK_LATE, Fault.CALLBACK_MISSING, Fault.DROP_REPLY


def shares(text: str) -> dict[Fault, float]:
    return {rule.fault: rule.share for rule in parse_rules(text)}


def test_every_fault_is_described() -> None:
    """Each fault has one sentence, with N exactly if it has a number of its own."""
    for fault in Fault:
        assert fault.description.endswith(".")
        assert fault.description.count(". ") == 0
        assert (fault.number == ALWAYS) is (" N " not in fault.description), fault


def test_list_of_faults() -> None:
    """The list for the terminal names every fault and every place."""
    listed = list_of_faults()
    assert all(f"  {fault} " in listed and fault.description in listed for fault in Fault)
    assert all(f"{place.value[1:]}\n" in listed for place in Target)


def test_shares() -> None:
    """Shares are written in per cent or as numbers; a name alone means all requests."""
    assert shares("") == shares(" ") == {}
    assert shares("callback-missing:5%, callback-late : 0.25,drop-reply") == {
        MISSING: 0.05,
        LATE: 0.25,
        DROPPED: 1.0,
    }


def test_every_form_of_a_rule() -> None:
    """Number, share and window, each by itself and all together; 429 is short for http-429."""
    assert parse_rules("late-record=5") == (Rule(fault=Fault.LATE_RECORD, number=5),)
    assert parse_rules("455@30-90") == (Rule(fault=Fault.REFUSE_455, since=30, until=90),)
    assert parse_rules("455@30-") == (Rule(fault=Fault.REFUSE_455, since=30),)
    assert parse_rules("429=1:5%@0.5-2") == (
        Rule(fault=Fault.HTTP_429, number=1, share=0.05, since=0.5, until=2),
    )
    assert parse_rules("slow-reply")[0].number == 90


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense:5%", r"unknown fault 'nonsense'; known are maintenance, .*-unsigned"),
        ("callback-late,", "unknown fault ''"),
        ("callback-late:101%", "the share of callback-late must be like 5% or 0.05, .* not '101%'"),
        ("callback-late:5", "not '5'"),
        ("callback-late:", "not ''"),
        ("callback-late:-1%", "not '-1%'"),
        ("callback-late:nan", "not 'nan'"),
        ("callback-late:many", "not 'many'"),
        ("callback-late:5%%", "not '5%%'"),
        ("callback-late,callback-late:5%", "callback-late is named twice"),
        ("late-record=-1", "the number of late-record must be at least 0, as in late-record=3, not '-1'"),
        ("late-record=", "not ''"),
        ("late-record=inf", "not 'inf'"),
        ("455@90", "the window of 455 must be like 30-90 or 30-, in vendor seconds, not '90'"),
        ("455@90-30", "not '90-30'"),
        ("455@x-30", "not 'x-30'"),
    ],
)
def test_bad_rules(text: str, words: str) -> None:
    """A list that cannot be read is refused with a message that names the mistake, in the settings too."""
    with pytest.raises(ValueError, match=words):
        parse_rules(text)
    with pytest.raises(ValueError, match=words):
        SandboxSettings(faults=text)


def test_settings() -> None:
    """The plan has the rules of the faults; an empty webhook key is a mistake, and a key is not shown."""
    assert SandboxSettings(faults="drop-reply:50%").plan.rules == (Rule(fault=DROPPED, share=0.5),)
    with pytest.raises(ValueError, match="must not be empty"):
        SandboxSettings(webhook_key="")
    assert "hook-key" not in repr(SandboxSettings(webhook_key="hook-key"))


def test_settings_hold_a_script() -> None:
    """A script in the settings becomes part of their plan, and survives a copy of them."""
    settings = SandboxSettings(script=[["500"], []], faults="429", seed=4)  # type: ignore[arg-type]
    assert attrs.evolve(settings).plan == FaultPlan.script([["500"], []], then="429", seed=4)
    for script in (["500"], [["nonsense"]]):
        with pytest.raises(ValueError, match=r"list of faults|unknown fault"):
            SandboxSettings(script=script)  # type: ignore[arg-type]


def test_draws_repeat() -> None:
    """The same seed picks the same submits at every call, another seed others; the share is kept."""
    plan = FaultPlan.parse("callback-late:10%", seed=1)
    hit = [plan.for_submit(number, 0.0) for number in range(1, 5001)]
    assert hit == [plan.for_submit(number, 0.0) for number in range(1, 5001)]
    assert hit != [attrs.evolve(plan, seed=2).for_submit(number, 0.0) for number in range(1, 5001)]
    assert sum(map(bool, hit)) == pytest.approx(500, abs=80)


def test_draws_are_independent() -> None:
    """One more fault in the plan leaves the submits of the others as they were."""
    alone = FaultPlan.parse("callback-late:30%")
    both = FaultPlan.parse("drop-reply:30%,callback-late:30%")
    for number in range(1, 201):
        assert (LATE in alone.for_submit(number, 0.0)) is (LATE in both.for_submit(number, 0.0))


def test_windows() -> None:
    """A rule strikes from the beginning of its window up to its end."""
    plan = FaultPlan.parse("455@30-90")
    assert [bool(plan.for_submit(1, age)) for age in (0, 29.9, 30, 89.9, 90)] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_script() -> None:
    """The first submits meet their entries and nothing else, those after it the plan."""
    plan = FaultPlan.script([["429"], [], [LATE, "late-record=3"]], then="drop-reply")
    met = [plan.for_submit(number, 0.0) for number in range(1, 6)]
    assert met == [
        {Fault.HTTP_429: ALWAYS},
        {},
        {LATE: 120, Fault.LATE_RECORD: 3},
        {DROPPED: ALWAYS},
        {DROPPED: ALWAYS},
    ]
    asked = plan.for_submit(2, 0.0, parse_rules("500"))
    assert asked == {Fault.REFUSE_500: ALWAYS}


def test_calls_without_a_task() -> None:
    """Uploads and reads of the balance have only the faults of their own place."""
    plan = FaultPlan.parse("upload-500,credits-integer,429")
    assert plan.for_call(Target.UPLOAD, 1, 0.0) == {Fault.UPLOAD_500: ALWAYS}
    assert plan.for_call(Target.CREDITS, 1, 0.0) == {Fault.CREDITS_INTEGER: ALWAYS}


def test_script_file(tmp_path: Path) -> None:
    """A script is read from JSON Lines; an invalid line is reported with its number."""
    file = tmp_path / "script.jsonl"
    file.write_text('["429"]\n\n[]\n["drop-reply", "late-record=5"]\n')
    assert read_script(file) == [["429"], [], ["drop-reply", "late-record=5"]]
    for text, words in (
        ('[]\n"429"', "line 2 .* not a list of names"),
        ("[1]", "line 1 .* not a list of names"),
        ("[", "line 1 of the fault script"),
        ('["nonsense"]', "line 1 .*unknown fault 'nonsense'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_script(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_script(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", set()),
        ("?x=sandbox-fault", set()),
        ("?sandbox-fault=", set()),
        ("?sandbox-fault=callback-missing", {MISSING}),
        ("?a=1&sandbox-fault=callback-late,%20drop-reply#top", {LATE, DROPPED}),
        ("?sandbox-fault=callback-late&sandbox-fault=drop-reply", {LATE, DROPPED}),
        ("?sandbox-fault=late-record%3D5", {Fault.LATE_RECORD}),
        ("?sandbox-fault=late-record=5", {Fault.LATE_RECORD}),
    ],
)
def test_faults_an_image_asks_for(query: str, expected: set[Fault]) -> None:
    """The URL of an image names the faults of its tasks."""
    assert {rule.fault for rule in faults_of_url(IMAGE + query)} == expected
    vendor = Vendor(random.Random(7), FaultPlan.parse("callback-stale"))
    vendor.open_account(["test"], 100.0)
    task = vendor.submit("test", {"prompt": "x", "inputImage": IMAGE + query}, 0.0).task
    assert task is not None
    assert task.faults.keys() == {Fault.CALLBACK_STALE, *expected}


def test_misspelled_fault_of_an_image() -> None:
    """A submit whose image asks for an unknown fault is refused, naming those there are."""
    vendor = Vendor(random.Random(7))
    vendor.open_account(["test"], 100.0)
    image = f"{IMAGE}?sandbox-fault=calback-late"
    submission = vendor.submit("test", {"prompt": "x", "inputImage": image}, 0.0)
    assert submission.task is None
    assert b'"code":422' in submission.reply.encode()
    assert b"unknown fault 'calback-late'; known are maintenance," in submission.reply.encode()
