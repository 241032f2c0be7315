"""What checks the results of a run: its files, its worker processes, and the verdicts of the journal."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import attrs

from flux_async.errors import InvalidInput, MissingExtra, shown
from flux_async.job_state import NO_CHECKS, WantedChecks
from flux_async.verification.preserve import FORMATS, PreserveFormat

if TYPE_CHECKING:
    from flux_async.verification.preserved_file import PreservedFile
    from flux_async.verification.verdict import Verdict

_NEEDED = ("PIL", "cv2", "numpy", "onnxruntime", "rapidocr")


class Checker(Protocol):
    """What makes the checks; ``ImageChecks`` does it in worker processes."""

    async def has_text(self, image: Path, /) -> bool:
        """Return whether text is found in an image."""

    async def verify(self, original: Path, result: Path, /) -> Verdict:
        """Return what became of the text, and of everything else."""

    async def preserve_file(
        self,
        original: Path,
        result: Path,
        destination: Path,
        /,
        *,
        format: PreserveFormat,  # noqa: A002 - as in preserve
    ) -> PreservedFile:
        """Write the composed image over ``destination``, unless it is refused."""

    async def aclose(self) -> None:
        """End the processes."""


@attrs.define(kw_only=True, eq=False)
class CheckStage:
    """The checks of one run, and where their files are.

    Attributes:
        wanted: The checks.
        directory: The folder of the results.
        originals: Receives originals that have an address.
        format: Format of composed images.
        checker: Makes the checks; None starts processes of the run's own with the first check.
    """

    wanted: WantedChecks
    directory: Path
    originals: Path
    format: PreserveFormat = "png"
    checker: Checker | None = None
    _own: Checker | None = attrs.field(default=None, init=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own is not None:
            await self._own.aclose()

    def ready(self) -> Checker:
        """Return what makes the checks."""
        if self.checker is not None:
            return self.checker
        if self._own is None:
            from flux_async.verification.checks import ImageChecks  # noqa: PLC0415 - only runs with checks

            self._own = ImageChecks()
        return self._own


def require_extra(wanted: WantedChecks) -> None:
    """Refuse checks that cannot be made, before anything is paid.

    Raises:
        MissingExtra: The extra ``verify`` is not installed.
    """
    missing = [name for name in _NEEDED if wanted != NO_CHECKS and importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra.for_extra(f"{_name(wanted)} ({', '.join(missing)} not installed)", "verify")


def require_comparison(stage: CheckStage | None) -> None:
    """Refuse an attempt for a better result that could not be compared with the earlier one.

    Raises:
        InvalidInput: There is no folder for the results.
        MissingExtra: The extra ``verify`` is not installed.
    """
    if stage is None:
        raise InvalidInput(
            "It is submitted again for a better image, and two images are compared in a folder only.",
            advice="Save the results in a folder; nothing was sent for it.",
        )
    if stage.checker is None:
        require_extra(WantedChecks(verify=True))


def _name(wanted: WantedChecks) -> str:
    names = {"preserve": wanted.preserve, "verify": wanted.verify, "skip_textless": wanted.skip_textless}
    return next(name for name, is_wanted in names.items() if is_wanted)


def check_stage(
    wanted: WantedChecks,
    *,
    directory: str | os.PathLike[str] | None,
    originals: str | os.PathLike[str] | None,
    format: PreserveFormat,  # noqa: A002 - as in preserve
    checker: Checker | None,
) -> CheckStage | None:
    """Return the checks of a run; None if it can make none, as its results go to no folder.

    A run without wanted checks makes those of attempts that an earlier run has begun for a better result.

    Raises:
        InvalidInput: There is no folder for the results, or the format is unknown.
        MissingExtra: The extra ``verify`` is not installed.
    """
    if format not in FORMATS:
        raise InvalidInput(
            f"{shown(format)} is no format for a composed image.",
            advice=f"Choose one of {', '.join(FORMATS)}; nothing was sent.",
        )
    if directory is None and wanted == NO_CHECKS:
        return None
    if directory is None:
        raise InvalidInput(f"{_name(wanted)} needs a folder for the results.", advice="Give directory=.")
    if checker is None:
        require_extra(wanted)
    return CheckStage(
        wanted=wanted,
        directory=Path(directory),
        originals=Path(directory, "originals") if originals is None else Path(originals),
        format=format,
        checker=checker,
    )


# --- the outcome ------------------------------------------------------------------------------------------


def read_verdict(found: Mapping[str, Any] | None) -> Verdict | None:
    """Return a verdict of the journal; None if there is none, or another release wrote it."""
    if found is None:
        return None
    from flux_async.verification.verdict import Verdict, VerdictKind  # noqa: PLC0415 - only with checks

    names = {field.name for field in attrs.fields(Verdict)}
    values = {name: _as_tuples(value) for name, value in found.items() if name in names}
    try:
        return Verdict(**values | {"kind": VerdictKind(values["kind"])})
    except (KeyError, TypeError, ValueError):
        return None


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
