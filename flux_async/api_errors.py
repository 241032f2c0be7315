"""Refusals of the vendor: an error class per code; :mod:`flux_async.api.error_codes` assigns them.

The whole tree, with these, is in the docstring of :mod:`flux_async.errors`.
"""

from __future__ import annotations

from typing import Any

from flux_async.errors import Charge, FluxError, Scope


class ApiError(FluxError):
    """The vendor answered with a code other than 200 (API page, "Error Handling").

    Attributes:
        code: The envelope's ``code``, or the HTTP status if there was no envelope.
        msg: The envelope's ``msg``, word for word.
        http_status: HTTP status of the answer; the vendor sends most errors with HTTP 200.
    """

    default_charge = Charge.MAYBE
    default_advice = "Look the code up in the vendor's documentation."

    def __init__(
        self, message: str, *, code: int = 0, msg: str = "", http_status: int | None = None, **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.code: int = code
        self.msg: str = msg
        self.http_status: int | None = http_status


class ContentPolicyError(ApiError):
    """400: moderation refused the prompt or the image."""

    default_charge = Charge.NO
    default_advice = "Change the prompt or the image; the same request would be refused again."


class AuthenticationError(ApiError):
    """401: the key is missing, wrong or disabled."""

    default_charge = Charge.NO
    default_scope = Scope.STOP
    default_advice = "Set KIE_API_KEY to a key from https://kie.ai/api-key. {new_key}"


class InsufficientCreditsError(ApiError):
    """402: the balance does not cover the image."""

    default_charge = Charge.NO
    default_scope = Scope.STOP
    default_advice = "Top up at https://kie.ai/pricing; finished images are kept."


class PermissionDeniedError(ApiError):
    """403: an address that is not on the key's whitelist, or a disabled key."""

    default_charge = Charge.NO
    default_scope = Scope.STOP
    default_advice = "Check the key's IP whitelist and state at https://kie.ai/api-key. {new_key}"


class NotFoundError(ApiError):
    """404: no such path or record."""

    default_charge = Charge.NO
    default_advice = "Check the task id, and that KIE_BASE_URL names the API's host."


class InvalidRequestError(ApiError):
    """422: a parameter was refused by the vendor."""

    default_charge = Charge.NO
    default_advice = "Correct the parameter that the message names; the same request would be refused again."


class RateLimitedError(ApiError):
    """429: more than 20 submits in 10 s; this one was rejected, not queued.

    Attributes:
        retry_after_s: Seconds the vendor asked to wait, or None.
    """

    default_charge = Charge.NO
    default_scope = Scope.ACCOUNT_PAUSED
    default_advice = "Wait a full window (10 s) and try again, or lower the rate."

    def __init__(self, message: str, *, retry_after_s: float | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after_s: float | None = retry_after_s


class KeyLimitError(ApiError):
    """433: the hourly, daily or total cap set on this key is used up."""

    default_charge = Charge.NO
    default_scope = Scope.STOP
    default_advice = "Raise the key's cap at https://kie.ai/api-key, or use another key. {new_key}"


class MaintenanceError(ApiError):
    """455: the service is under maintenance."""

    default_charge = Charge.NO
    default_scope = Scope.ACCOUNT_PAUSED
    default_advice = "Try again in some minutes; nothing was charged."


class ServerError(ApiError):
    """408, 500, 501, 502 …: the vendor failed; the task of a submit may exist and be charged."""

    default_advice = (
        "Look for the task at kie.ai/logs before submitting the same image again; code 500 may also mean a "
        "bad parameter."
    )


class FeatureDisabledError(ApiError):
    """505: the vendor has switched this feature off."""

    default_charge = Charge.NO
    default_scope = Scope.STOP
    default_advice = "Wait for the vendor to switch it on again; support is at support@kie.ai."


class UploadRejected(ApiError):
    """The upload host refused the file or how it was sent: 400 in most cases."""

    default_charge = Charge.NO
    default_advice = "Check the file, and that KIE_UPLOAD_URL names the upload host; uploads are free."
