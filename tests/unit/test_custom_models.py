"""Models that callers describe themselves: in requests, keys, journals and submits."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import CustomModel, Echo, EditRequest, GenerateRequest, InvalidInput, Job, Model
from flux_async.api import jobs, kontext
from flux_async.api.echo import compare
from flux_async.api.envelope import WireResponse
from flux_async.api.models_table import api_for, name_of
from flux_async.api.stored_requests import read_model, read_request, store_request, without_terms
from flux_async.batch.options import price_list
from flux_async.cli.model_file import read_model_file
from flux_async.models import digest_key
from flux_async.policy.generation_times import kind_of
from tests.support.samples import TASK

IMAGE = "https://example.com/a.jpg"
LAB = CustomModel(
    id="lab/model-9",
    credits=3,
    image_field="pictures",
    image_is_list=True,
    extras={"quality": "high", "model": "inner"},
    names={"aspect_ratio": "size"},
    options=frozenset({"aspect_ratio"}),
    max_prompt=100,
)


def removal(model: CustomModel = LAB, **options: Any) -> EditRequest:
    return EditRequest.text_removal(IMAGE, model=model, **options)


def test_it_has_what_a_model_of_the_table_has() -> None:
    """Name, price and row; it equals its copies and is found in mappings."""
    assert str(LAB) == LAB.value == LAB.id
    assert (LAB.row.credits, list(LAB.row.apis)) == (3, ["jobs"])
    assert pickle.loads(pickle.dumps(LAB)) == copy.deepcopy(LAB) == LAB
    assert {LAB: 1}[copy.deepcopy(LAB)] == 1
    assert CustomModel(**LAB.data) == LAB
    assert LAB.data == {
        "id": "lab/model-9",
        "credits": 3,
        "image_field": "pictures",
        "image_is_list": True,
        "extras": {"quality": "high", "model": "inner"},
        "names": {"aspect_ratio": "size"},
        "options": ["aspect_ratio"],
        "max_prompt": 100,
    }
    least: dict[str, Any] = {"id": "x", "credits": 1, "image_field": "y"}
    assert CustomModel(**least).data == least


def test_a_request_is_checked_against_it() -> None:
    """What it does not have is refused when the request is made; by default it has no options."""
    assert removal(aspect_ratio="4:3").enable_translation is None
    for options, words in (
        ({"watermark": "ours"}, r"lab/model-9 does not take watermark; it has aspect_ratio\."),
        ({"prompt": "x" * 101}, "takes prompts of at most 100 characters, not 101"),
        ({"safety_tolerance": 3}, "from 0 to 2 for EditRequest"),
    ):
        with pytest.raises(InvalidInput, match=words):
            removal(**options)
    with pytest.raises(InvalidInput, match="only edits images"):
        GenerateRequest(prompt="A boat", model=LAB)
    with pytest.raises(InvalidInput, match="needs aspect_ratio"):
        removal(attrs.evolve(LAB, required=frozenset({"aspect_ratio"})))
    assert GenerateRequest(prompt="A boat", model=attrs.evolve(LAB, needs_image=False)).model == LAB


def test_a_stored_request_contains_it_completely() -> None:
    """A resume needs nothing else; what is submitted follows its row."""
    request = removal(aspect_ratio="4:3", callback_url="https://ours.example/")
    stored = store_request(request)
    read = read_request(stored)
    assert read == request
    assert isinstance(read.model, CustomModel)
    assert read.model.data == LAB.data
    assert read_model(stored) == LAB
    assert json.loads(jobs.build_submit(stored).body or b"") == {
        "model": "lab/model-9",
        "callBackUrl": "https://ours.example/",
        "input": {
            "prompt": request.prompt,
            "size": "4:3",
            "pictures": [IMAGE],
            "quality": "high",
            "model": "inner",
        },
    }


def test_only_the_jobs_api_has_it() -> None:
    """Whatever the default is; the other API refuses it."""
    assert {api_for(LAB, "kontext"), api_for(LAB, "jobs")} == {"jobs"}
    with pytest.raises(InvalidInput, match=r"The kontext API does not have the model lab/model-9\."):
        kontext.build_submit(store_request(removal()))


def test_equal_jobs_have_equal_keys() -> None:
    """What is not submitted does not count: a corrected price makes no new job; another extra does."""
    key = digest_key(removal())
    for same in ({"credits": 8}, {"options": frozenset()}, {"max_prompt": None}, {"needs_image": False}):
        changed = attrs.evolve(LAB, **same)
        assert changed == LAB
        assert digest_key(removal(changed)) == key
    for other in ({"id": "lab/model-8"}, {"extras": {}}, {"image_field": "image"}, {"image_is_list": False}):
        changed = attrs.evolve(LAB, **other)
        assert changed != LAB
        assert digest_key(removal(changed)) != key
    assert Job(request=read_request(store_request(removal()))).key == key
    assert digest_key(EditRequest.text_removal(IMAGE)) != key


def test_its_id_may_be_in_the_table() -> None:
    """As where a later release has added it, or where the caller knows how Max is chosen over jobs."""
    model = CustomModel(id="flux-kontext-max", credits=10, image_field="input_image")
    stored = store_request(removal(model))
    assert read_request(stored).model == model != Model.MAX
    assert json.loads(jobs.build_submit(stored).body or b"")["model"] == "flux-kontext-max"
    assert compare(record_of(stored), stored).echo is Echo.CONFIRMED
    assert price_list({model: 11})[Model.MAX] == 10


def test_stored_requests_are_compared_without_price_and_limits() -> None:
    """Those of a model of the caller's own; other requests have none."""
    one, other = (
        without_terms(json.loads(store_request(removal(attrs.evolve(LAB, credits=price, max_prompt=900)))))
        for price in (3, 8)
    )
    assert one == other
    assert one["customModel"].keys().isdisjoint({"credits", "max_prompt", "options"})
    plain = json.loads(store_request(EditRequest.text_removal(IMAGE)))
    assert without_terms(plain) == plain


def test_tasks_of_it_are_learned_under_its_name() -> None:
    """As those of a model of the table."""
    assert kind_of(removal()) == "lab/model-9/edit"


def record_of(stored: str) -> Any:
    """Return what a record shows of the submit of a stored request."""
    sent = json.loads(jobs.build_submit(stored).body or b"")
    param = json.dumps({**sent, "input": json.dumps(sent["input"])})
    data = {"taskId": TASK, "state": "success", "param": param}
    answer = WireResponse(status=200, body=json.dumps({"code": 200, "data": data}).encode())
    return jobs.parse_status(answer, TASK).params


@pytest.mark.parametrize(
    "model",
    [
        LAB,
        CustomModel(id="flux1-kontext", credits=10, image_field="input_image", extras={"model": "max"}),
        CustomModel(id="flux1-kontext", credits=10, image_field="image"),
    ],
    ids=["unknown", "id of the table", "id of the table, other field"],
)
def test_the_echo_of_its_submit_confirms_it(model: CustomModel) -> None:
    """Also where its id is that of a model of the table."""
    stored = store_request(removal(model))
    assert compare(record_of(stored), stored).echo is Echo.CONFIRMED
    other = store_request(EditRequest.text_removal("https://example.com/b.jpg", model=model))
    assert compare(record_of(other), stored).echo is Echo.UNRECOGNISED
    assert compare(record_of(store_request(removal(attrs.evolve(model, id="b")))), stored).is_other_model


def test_models_are_compared_by_their_names() -> None:
    """An id of the table is the name of its model; any other id is its own name."""
    assert name_of("flux1-kontext") == name_of("flux-kontext-pro") == "flux-kontext-pro"
    assert name_of("lab/model-9") == "lab/model-9"


def test_its_price_can_be_given() -> None:
    """Else it is its own, also of one that was stored with an earlier price."""
    assert price_list(None)[LAB] == 3
    stored = read_model(store_request(removal()))
    assert price_list({attrs.evolve(LAB, credits=8): 8})[stored] == 8
    assert price_list({LAB: 4, Model.PRO: 6})[Model.PRO] == 6


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("id", "", "id of a CustomModel must be the id of a model"),
        ("id", "two words", "the id of a model"),
        ("id", 5, "the id of a model"),
        *(
            ("credits", bad, "a number of credits above 0")
            for bad in (0, -1, "4", True, float("nan"), float("inf"))
        ),
        *(("image_field", bad, "the name of a field") for bad in ("", "prompt", "a b", None)),
        ("image_is_list", "yes", "must be true or false, not 'yes'"),
        ("needs_image", 1, "must be true or false"),
        *(
            ("extras", bad, "tables of JSON values")
            for bad in (5, {"a": {1, 2}}, {"a": float("nan")}, {"a": "\0"}, {"a": "\ud800"})
        ),
        ("names", "x", "tables of JSON values"),
        *(
            ("names", bad, "names of a CustomModel must be options, each with a field of its own")
            for bad in (
                {"aspect_ration": "size"},
                {"aspect_ratio": 5},
                {"aspect_ratio": ["size"]},
                {"aspect_ratio": "a b"},
                {"aspect_ratio": "prompt"},
                {"aspect_ratio": "pictures"},
                {"prompt": "aspect_ratio"},
            )
        ),
        *(("options", bad, "must be some of aspect_ratio, enable") for bad in ("aspect_ratio", ["seed"])),
        ("required", ["seed"], "must be some of"),
        *(("max_prompt", bad, "a number of characters") for bad in (0, True, "9")),
    ],
    ids=repr,
)
def test_what_is_no_model_is_refused(field: str, value: Any, words: str) -> None:
    """With the attribute and what it must be."""
    with pytest.raises(InvalidInput, match=words):
        CustomModel(**{**LAB.data, field: value})


# --- files ------------------------------------------------------------------------------------------------

FILE = """
["lab/model-9"]
credits = 3
image_field = "pictures"
image_is_list = true
extras = { quality = "high", model = "inner" }
names = { aspect_ratio = "size" }
options = ["aspect_ratio"]
max_prompt = 100

["lab/model-8"]
credits = 2.5
image_field = "image"
"""


def test_a_file_has_a_table_for_each_model(tmp_path: Path) -> None:
    """Named by its id."""
    file = tmp_path / "models.toml"
    file.write_text(FILE, encoding="utf-8-sig")  # as editors of Windows write it
    models = read_model_file(file)
    assert list(models) == ["lab/model-9", "lab/model-8"]
    assert models["lab/model-9"].data == LAB.data
    assert models["lab/model-8"] == CustomModel(id="lab/model-8", credits=2.5, image_field="image")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"models.toml has no models\. Begin each with its id"),
        (b"credits = 5", "model credits: it is not a table"),
        (b"[a", "models.toml is not TOML: "),
        (b"\xff", "models.toml is not TOML: "),
        (b'["lab/x"]\nprice = 5', "model lab/x: there is no 'price'. Known are credits, image_field,"),
        (b'["lab/x"]\nid = "y"', "there is no 'id'"),
        (b'["a\\nb"]\ncredits = 5\nimage_field = "a"', r"model 'a\\nb': id of a CustomModel must be"),
        (b'["lab/x"]\ncredits = 5', "model lab/x: image_field must be given"),
        (b'["lab/x"]', "model lab/x: credits and image_field must be given"),
        (
            b'["lab/x"]\ncredits = "5"\nimage_field = "a"',
            "x: credits of a CustomModel must be a number",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    """With the file, the model and the fault."""
    file = tmp_path / "models.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=words):
        read_model_file(file)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_model_file(tmp_path / "none.toml")
