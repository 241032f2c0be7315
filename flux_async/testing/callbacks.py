"""Callbacks as the vendor sends them, for tests of code that receives them."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Final

import attrs

WEBHOOK_KEY: Final = "webhook-key-of-the-test-kit"
"""Default key for the callbacks of sandboxes in tests."""

_MESSAGES: Final = {
    400: "Your prompt was flagged by Website as violating content policies.",
    500: "Internal Error, Please try again later.",
    501: "Image generation task failed",
}


@attrs.frozen
class SignedCallback:
    """One callback, to be posted with ``post(url, headers=callback.headers, content=callback.body)``."""

    headers: dict[str, str]
    body: bytes


@attrs.frozen
class SignCallback:
    """Makes callbacks with the sandbox's own code; the fixture ``sign_callback`` is one.

    Attributes:
        default_key: Signs callbacks that name no key.
        now: Default signing time, in seconds since the epoch.
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
            result_url: Address of the result.
            origin_url: Address of the input at the vendor.
            message: Left out, the vendor's message for that code.
            key: Signing key; left out, the key of the test's sandbox.
            at: Signing time, in seconds since the epoch; left out, now.
        """
        from flux_async.sandbox import callbacks, envelopes  # noqa: PLC0415 - the kit loads what a test uses

        succeeded = code == callbacks.ACCEPTED
        links = (origin_url, result_url) if succeeded else ("", "")
        info = dict(zip(("originImageUrl", "resultImageUrl"), links, strict=True))
        words = message or (callbacks.SUCCESS if succeeded else _MESSAGES.get(code, _MESSAGES[500]))
        reply = envelopes.Reply({"code": code, "msg": words, "data": {"taskId": task_id, "info": info}})
        signed_at = int(self.now() if at is None else at)
        signature = callbacks.sign(key or self.default_key, task_id, signed_at)
        return SignedCallback({"Content-Type": "application/json", **signature}, reply.encode())
