"""Which task belongs to which job."""

from __future__ import annotations

import json
from contextlib import closing

from flux_async import CustomModel, Model
from flux_async.api.stored_requests import model_patch, store_request
from flux_async.journal import ownership
from flux_async.journal.schema import connect
from flux_async.models import EditRequest, GenerateRequest, JobKey


def test_the_job_of_a_record_is_found_by_an_index() -> None:
    """A vendor that copies every image causes a query per task, which must not read the whole journal."""
    statements: list[str] = []
    with closing(connect()) as connection:
        connection.set_trace_callback(statements.append)
        shown = {"prompt": "p", "inputImage": "https://copies.example/1.jpg"}
        assert ownership.job_that_sent(connection, shown, besides=1, by_image=True) is None
        connection.set_trace_callback(None)
        plans = [
            step[3]
            for sql in statements
            for step in connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
        ]
    assert any("job_by_subject" in plan for plan in plans)
    assert any("attempt_by_input" in plan for plan in plans)
    assert not [plan for plan in plans if plan.startswith("SCAN")]


def test_the_closest_request_is_found() -> None:
    """By image, by prompt and by upload; an exact match comes before one in another spelling."""
    jobs = {
        "words": store_request(GenerateRequest(prompt="a lighthouse")),
        "respelled": store_request(EditRequest(prompt="p", input_image="https://h.example/a%20b.jpg")),
        "png": store_request(
            EditRequest(prompt="p", input_image="https://h.example/c.jpg", output_format="png")
        ),
        "jpeg": store_request(
            EditRequest(prompt="p", input_image="https://h.example/c.jpg", output_format="jpeg")
        ),
        "uploaded": json.dumps({"prompt": "p", "inputImage": "sha256:" + "0" * 64}),
        "never sent": store_request(EditRequest(prompt="p", input_image="https://h.example/d.jpg")),
    }
    with closing(connect()) as connection:
        for number, (key, request) in enumerate(jobs.items(), start=1):
            sent = int(key != "never sent")
            connection.execute(
                "INSERT INTO job (number, key, request, attempts) VALUES (?, ?, ?, ?)",
                (number, key, request, sent),
            )
        connection.execute(
            "INSERT INTO attempt (job, number, state, intended_at, input_url) "
            "VALUES (5, 1, 'in_doubt', 0, 'https://uploads.example/1.jpg')"
        )

        def owner(
            image: str | None = None, prompt: str = "p", *, besides: int = 0, **other: str
        ) -> str | None:
            shown = {"prompt": prompt, "inputImage": image} | other
            sender = ownership.job_that_sent(connection, shown, besides=besides)
            return None if sender is None else sender.key

        assert owner(prompt="a lighthouse") == "words"
        assert owner("https://h.example/a b.jpg") == "respelled"
        assert owner("https://h.example/c.jpg", outputFormat="jpeg") == "jpeg"
        assert owner("https://h.example/c.jpg", outputFormat="png") == "png"
        assert owner("https://h.example/c.jpg", outputFormat="png", besides=3) == "jpeg"
        assert owner("https://uploads.example/1.jpg") == "uploaded"
        assert owner("https://h.example/d.jpg") is None
        assert owner("https://h.example/c.jpg", prompt="another") is None
        shown = {"prompt": "p", "inputImage": "https://h.example/a b.jpg"}
        assert ownership.job_that_sent(connection, shown, besides=0, verbatim=True) is None
        assert ownership.job_that_sent(connection, {}, besides=0) is None


def test_a_job_is_found_by_the_model_that_it_was_submitted_with() -> None:
    """Not by that of its request, where another one was taken for a better result."""
    mine = CustomModel(id="mine/edit", credits=3, image_field="image_url", extras={"steps": 9})
    body = store_request(EditRequest(prompt="p", input_image="https://h.example/a.jpg", model=mine))
    patch = model_patch(body, Model.MAX)
    with closing(connect()) as connection:
        connection.execute(
            "INSERT INTO job (number, key, request, attempts, other_model) VALUES (1, 'k', ?, 2, ?)",
            (body, patch),
        )
        connection.execute(
            "INSERT INTO attempt (job, number, state, intended_at, input_url, other_model) "
            "VALUES (1, 2, 'submitted', 0, 'https://uploads.example/1.jpg', ?)",
            (patch,),
        )
        for image in ("https://h.example/a.jpg", "https://uploads.example/1.jpg"):
            shown = {"prompt": "p", "inputImage": image, "model": "flux-kontext-max"}
            assert ownership.job_that_sent(connection, shown, besides=0) == ownership.Sender(key=JobKey("k"))
            shown["model"] = "mine/edit"
            assert ownership.job_that_sent(connection, shown, besides=0) is None


def test_the_only_job_with_an_image_is_found_with_any_prompt() -> None:
    """The prompt decides between several jobs with one image; if it is none of theirs, no job is named."""
    image = "https://h.example/{}.jpg"
    jobs = {
        "ours": store_request(EditRequest(prompt="p", input_image=image.format("a"))),
        "only": store_request(EditRequest(prompt="p", input_image=image.format("b"))),
        "first": store_request(EditRequest(prompt="p", input_image=image.format("c"))),
        "second": store_request(EditRequest(prompt="q", input_image=image.format("c"))),
    }
    with closing(connect()) as connection:
        for number, (key, request) in enumerate(jobs.items(), start=1):
            connection.execute(
                "INSERT INTO job (number, key, request, attempts) VALUES (?, ?, ?, 1)", (number, key, request)
            )

        def sender(name: str, **other: str) -> ownership.Sender | None:
            shown = {"inputImage": image.format(name)} | other
            return ownership.job_that_sent(connection, shown, besides=1, by_image=True)

        unknown = ownership.Sender(key=None)
        assert sender("b") == sender("b", prompt="translated") == ownership.Sender(key=JobKey("only"))
        assert sender("b", prompt="translated", model="flux-kontext-max") == unknown
        assert sender("c") == sender("c", prompt="translated") == unknown
        assert sender("c", prompt="q") == ownership.Sender(key=JobKey("second"))
        assert sender("d", prompt="p") is None
        assert sender("a", prompt="translated") is None


def test_confirmed_echoes_are_counted_by_request_and_by_image() -> None:
    """A new journal has counted none."""
    with closing(connect()) as connection:
        assert ownership.confirmed_echoes(connection, "kontext") == (0, 0)
        for _ in range(2):
            ownership.count_image_echo(connection, "kontext")
        assert ownership.confirmed_echoes(connection, "kontext") == (0, 2)
