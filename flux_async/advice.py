"""Advice of errors, in the words of the surface that shows it: Python code or the command line.

An advice is a template with actions in braces, such as ``{wait}``. Each surface has its own words for them:
Python's are in this module, the command line's in :mod:`flux_async.cli.advice`. In Python they also depend on
the journal: one in memory ends with its run, so a new run pays again for what this one has paid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

ACTIONS = frozenset(
    {
        "accept_price",
        "check_network",
        "fetch",
        "file",
        "give_key",
        "larger_budget",
        "larger_result",
        "larger_upload",
        "new_key",
        "new_run",
        "new_run_after_halt",
        "other_api",
        "paid_once",
        "pay_again",
        "recover",
        "result_url",
        "sure",
        "unanswered_submit",
        "wait",
    }
)
"""All names that a template may hold in braces."""


def fill(template: str, words: Mapping[str, str]) -> str:
    """Return ``template`` with each action replaced by its words; other braces stay."""
    filled = re.sub(r"\{([a-z_]+)\}", lambda found: words.get(found[1], found[0]), template)
    return filled.strip()


def must_be_named(api: str | None) -> bool:
    """Return whether a call about a task has to name its API: one that is known, and not the default."""
    return api not in {None, "kontext"}


def other_api(api: str | None) -> str:
    """Return the API that a task may have been submitted to instead."""
    return "kontext" if api == "jobs" else "jobs"


def python_words(
    task_id: str | None, api: str | None = None, *, in_memory: bool = False
) -> Mapping[str, str]:
    """Return the words of every action for users of the library.

    Args:
        task_id: That of the error.
        api: The API that has the task, if known.
        in_memory: Whether the error is of a batch whose journal is in memory.
    """
    task = "task_id" if task_id is None else repr(str(task_id))
    if must_be_named(api):
        task += f", api={api!r}"
    words = {
        "accept_price": "To go on at this price, run the same call again with it in prices; finished images "
        "are kept.",
        "check_network": "check KIE_BASE_URL and the network",
        "fetch": "Run the batch again on the same journal to fetch it.",
        "file": "pathlib.Path(…) for a file",
        "give_key": "set KIE_API_KEY, or give api_key",
        "larger_budget": "Run the same call again with a larger max_credits",
        "larger_result": "raise max_bytes or max_pixels of DownloadLimits",
        "larger_upload": "upload it with client.upload(path, max_bytes=…)",
        "new_key": "A journal of the old key goes on with a new key of the same account after "
        "rekey(client, path); nothing is paid twice.",
        "new_run": "running the same again submits them, and fetches what is already paid.",
        "new_run_after_halt": "Images in doubt are not submitted again; the next run submits those that are "
        "left, one at a time until one is accepted, and each of them may be charged.",
        "other_api": f"It may be a task of the API {other_api(api)}: give api={other_api(api)!r}.",
        "paid_once": "",
        "pay_again": "",
        "recover": "open it with Journal(path).open(accept_lost_records=True)",
        "result_url": "image.result_url",
        "sure": "call rekey(client, path, same_account=True)",
        "unanswered_submit": "Its answer is still awaited: check client.unclaimed before you submit again.",
        "wait": f"take it up again with client.wait({task})",
    }
    return words | _in_memory(task) if in_memory else words


def _in_memory(task: str) -> dict[str, str]:
    """Return the words that differ for a batch whose journal is in memory."""
    return {
        "accept_price": "To go on at this price, give it in prices.",
        "fetch": f"Fetch it with `image = await client.wait({task})` and "
        "`await client.download(image, path)`. The journal was in memory: a new run of the batch pays again.",
        "larger_budget": "Give a larger max_credits",
        "new_key": "",
        "new_run": "give them to a new run.",
        "new_run_after_halt": "A new run submits each image that it is given, also those in doubt, one at a "
        "time until one is accepted, and each of them may be charged.",
        "paid_once": "The journal was in memory: a new run pays again for images that this one has paid, so "
        "give it only the others. Tasks whose outcomes were not yielded are in client.unclaimed.",
    }
