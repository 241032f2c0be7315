"""Callbacks as the vendor sends them, for tests of what receives them."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Final

import attrs

WEBHOOK_KEY: Final = "webhook-key-of-the-test-kit"
"""Signs the callbacks of sandboxes in tests, unless they are given another key."""

_MESSAGES: Final = {
    400: "Your prompt was flagged by Website as violating content policies.",
    500: "Internal Error, Please try again later.",
    501: "Image generation task failed",
}


@attrs.frozen
class SignedCallback:
    """One delivery, ready to be posted: ``post(url, headers=callback.headers, content=callback.body)``."""

    headers: dict[str, str]
    body: bytes


@attrs.frozen
class SignCallback:
    """Makes callbacks; this is what the fixture ``sign_callback`` is. The sandbox's own code writes them.

    Attributes:
        default_key: Signs those that name no key.
        now: The hour of those that name none, in seconds since the epoch.
    """

    default_key: str = attrs.field(default=WEBHOOK_KEY, repr=False)
    now: Callable[[], float] = time

    def __call__(
        self,
        task_id: str,
        *,
        code: int = 200,
        result_url: str = "https://files.example/result.jpg",
        origin_url: str = "https://files.example/origin.jpg",
        message: str | None = None,
        key: str | None = None,
        at: float | None = None,
    ) -> SignedCallback:
        """Make the callback of a task (API page, "Webhook Callback"; signature as of kie.ai/settings).

        Args:
            task_id: The task.
            code: 200, or 400, 500, 501: the task failed, and there are no addresses.
            result_url: Of the result.
            origin_url: Of the input, as the vendor keeps it.
            message: What it says; left out, what the vendor says with that code.
            key: Signs it; left out, the key of the test's sandbox.
            at: When it is signed, in seconds since the epoch; left out, now.
        """
        from flux_async.sandbox import callbacks, envelopes  # noqa: PLC0415 - the kit loads what a test uses

        succeeded = code == callbacks.ACCEPTED
        links = (origin_url, result_url) if succeeded else ("", "")
        info = dict(zip(("originImageUrl", "resultImageUrl"), links, strict=True))
        told = message or (callbacks.SUCCESS if succeeded else _MESSAGES.get(code, _MESSAGES[500]))
        reply = envelopes.Reply({"code": code, "msg": told, "data": {"taskId": task_id, "info": info}})
        signed_at = int(self.now() if at is None else at)
        signature = callbacks.sign(key or self.default_key, task_id, signed_at)
        return SignedCallback({"Content-Type": "application/json", **signature}, reply.encode())
