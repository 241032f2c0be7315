"""The checks that a worker makes of the results it has saved, with worker processes for all its batches."""

from __future__ import annotations

import attrs

from flux_async.batch.check_stage import Checker, CheckStage, check_stage
from flux_async.batch.options import check_flag
from flux_async.errors import InvalidInput
from flux_async.files.sink import FolderSink, Sink
from flux_async.job_state import NO_CHECKS, WantedChecks
from flux_async.verification.preserve import PreserveFormat


@attrs.define(kw_only=True, eq=False)
class WorkerChecks:
    """The checks of one worker.

    Attributes:
        wanted: The checks.
        format: Format of composed images.
        checker: Makes them.
    """

    wanted: WantedChecks
    format: PreserveFormat
    checker: Checker
    _is_own: bool

    @classmethod
    def of(
        cls,
        *,
        verify: bool,
        preserve: bool,
        format: PreserveFormat,  # noqa: A002 - as in preserve
        checker: Checker | None,
    ) -> WorkerChecks | None:
        """Return the checks that a worker was asked for, or None.

        Raises:
            InvalidInput: An option has a wrong type or an unknown value.
            MissingExtra: The extra ``verify`` is not installed.
        """
        wanted = WantedChecks(preserve=check_flag(preserve, "preserve"), verify=check_flag(verify, "verify"))
        check_stage(wanted, directory=".", originals=None, format=format, checker=checker)
        if wanted == NO_CHECKS:
            return None
        if checker is not None:
            return cls(wanted=wanted, format=format, checker=checker, is_own=False)
        from flux_async.verification.checks import ImageChecks  # noqa: PLC0415 - only workers with checks

        return cls(wanted=wanted, format=format, checker=ImageChecks(), is_own=True)

    def stage(self, sink: Sink | None) -> CheckStage:
        """Return the checks of a batch whose results go to ``sink``.

        Raises:
            InvalidInput: That is no folder.
        """
        if not isinstance(sink, FolderSink):
            raise InvalidInput(
                "A worker with verify or preserve needs its results in a folder.",
                advice="Leave them out, or save the results in a folder; nothing was sent.",
            )
        return CheckStage(
            wanted=self.wanted,
            directory=sink.folder,
            originals=sink.folder / "originals",
            format=self.format,
            checker=self.checker,
        )

    async def aclose(self) -> None:
        """End the worker processes."""
        if self._is_own:
            await self.checker.aclose()
