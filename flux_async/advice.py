"""Advice of errors, in the words of the surface that shows it: Python code or the command line.

An advice is a template with actions in braces, such as ``{wait}``. Each surface has its own words for them:
Python's are in this module, the command line's in :mod:`flux_async.cli.advice`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

ACTIONS = frozenset(
    {
        "check_network",
        "fetch",
        "file",
        "give_key",
        "larger_budget",
        "larger_result",
        "larger_upload",
        "new_key",
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


def python_words(task_id: str | None) -> Mapping[str, str]:
    """Return the words of every action for users of the library; ``task_id`` is that of the error."""
    task = "task_id" if task_id is None else repr(str(task_id))
    return {
        "check_network": "check KIE_BASE_URL and the network",
        "fetch": "Run the batch again on the same journal",
        "file": "pathlib.Path(…) for a file",
        "give_key": "set KIE_API_KEY, or give api_key",
        "larger_budget": "Run the same call again with a larger max_credits",
        "larger_result": "raise max_bytes or max_pixels of DownloadLimits",
        "larger_upload": "upload it with client.upload(path, max_bytes=…)",
        "new_key": "A journal of the old key goes on with a new key of the same account after "
        "rekey(client, path); nothing is paid twice.",
        "pay_again": "",
        "recover": "open it with Journal(path).open(accept_lost_records=True)",
        "result_url": "image.result_url",
        "sure": "call rekey(client, path, same_account=True)",
        "unanswered_submit": "Its answer is still awaited: check client.unclaimed before you submit again.",
        "wait": f"take it up again with client.wait({task})",
    }
