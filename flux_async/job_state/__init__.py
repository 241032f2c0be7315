"""States, events and transitions of a job, and its next step. Pure.

A job moves only through :data:`TRANSITIONS`; a pair that is not in the table is an
:class:`IllegalTransition`. The source of an event (a poll, a callback, an operator, the start after a crash)
makes no difference.

::

    PENDING ──intent──▶ SUBMITTING ──accepted──▶ SUBMITTED ───image───▶ GENERATED ──on disk──▶ DONE
       ▲                 │  │  │                   ▲  │                    │
       ├──── refused ────┘  │  └── rejected ───────┼──┼──▶ FAILED ◀── lost ┘
       │                 unknown                   │  └── task failed ──▶ FAILED, or PENDING where it may
       │                    ▼                      │                      be paid for once more
       └── permission ── IN_DOUBT ── task found ───┘
                             ▲
                             └── the task's record shows another request ── SUBMITTED, GENERATED

Rules:

1. ``SubmitIntended`` is on disk before the POST leaves; after a crash SUBMITTING means "perhaps charged".
2. Only a refusal that was certainly not charged leads from SUBMITTING back to PENDING.
3. IN_DOUBT waits. A task found for it, by its callback or by a person, makes it SUBMITTED; only the caller's
   permission makes it PENDING. A task of an earlier submit that becomes known even then, before another
   POST, makes it SUBMITTED: no known paid task is paid for again.
4. DONE and FAILED are final: late and repeated events change nothing. (An image may be saved again if its
   file is missing; one that was left at the vendor, never saved and has expired there has FAILED.) Only the
   user's ``RetryGranted`` leads on from FAILED, and from DONE where the user wants another image.
5. A job has at most one attempt in progress: submitting, submitted or in doubt.
6. A task whose record shows another request is never the job's: the submit was answered with a wrong id, so
   its own task is unknown and the job is IN_DOUBT.
7. A job is cancelled only from PENDING: the vendor cannot cancel a task.
8. An image without text, where the user wants that check, is DONE from PENDING: no submit, no task.
9. Where the user wants another image of a job that is done, the earlier result is kept until the new one is
   verified; the better one is chosen. What would be FAILED meanwhile is DONE with the earlier result.
10. Our own deadline ends a run's wait, not the job: it stays SUBMITTED and paid, and the next run resumes it.
"""

from __future__ import annotations

from flux_async.job_state.events import Cancelled as Cancelled
from flux_async.job_state.events import Composed as Composed
from flux_async.job_state.events import EchoContradicted as EchoContradicted
from flux_async.job_state.events import Event as Event
from flux_async.job_state.events import NotChecked as NotChecked
from flux_async.job_state.events import NoTextFound as NoTextFound
from flux_async.job_state.events import Problem as Problem
from flux_async.job_state.events import ResubmitGranted as ResubmitGranted
from flux_async.job_state.events import ResultChosen as ResultChosen
from flux_async.job_state.events import ResultLost as ResultLost
from flux_async.job_state.events import RetryGranted as RetryGranted
from flux_async.job_state.events import Saved as Saved
from flux_async.job_state.events import SubmitAccepted as SubmitAccepted
from flux_async.job_state.events import SubmitIntended as SubmitIntended
from flux_async.job_state.events import SubmitRefused as SubmitRefused
from flux_async.job_state.events import SubmitRejected as SubmitRejected
from flux_async.job_state.events import SubmitUnknown as SubmitUnknown
from flux_async.job_state.events import TaskEnded as TaskEnded
from flux_async.job_state.events import TaskEndedRetryable as TaskEndedRetryable
from flux_async.job_state.events import TaskFound as TaskFound
from flux_async.job_state.events import TaskSucceeded as TaskSucceeded
from flux_async.job_state.events import Verified as Verified
from flux_async.job_state.states import BAD_VERDICTS as BAD_VERDICTS
from flux_async.job_state.states import CANCELLED as CANCELLED
from flux_async.job_state.states import FINAL as FINAL
from flux_async.job_state.states import LIVE as LIVE
from flux_async.job_state.states import TRANSITIONS as TRANSITIONS
from flux_async.job_state.states import EarlierResult as EarlierResult
from flux_async.job_state.states import IllegalTransition as IllegalTransition
from flux_async.job_state.states import JobSnapshot as JobSnapshot
from flux_async.job_state.states import JobState as JobState
from flux_async.job_state.states import apply as apply
from flux_async.job_state.states import earlier_is_better as earlier_is_better
from flux_async.job_state.states import verdict_in as verdict_in
from flux_async.job_state.states import verdict_of as verdict_of
from flux_async.job_state.steps import NO_CHECKS as NO_CHECKS
from flux_async.job_state.steps import AwaitCallback as AwaitCallback
from flux_async.job_state.steps import AwaitTask as AwaitTask
from flux_async.job_state.steps import Begin as Begin
from flux_async.job_state.steps import CheckForText as CheckForText
from flux_async.job_state.steps import Choose as Choose
from flux_async.job_state.steps import Compose as Compose
from flux_async.job_state.steps import Fetch as Fetch
from flux_async.job_state.steps import Settle as Settle
from flux_async.job_state.steps import Step as Step
from flux_async.job_state.steps import Submit as Submit
from flux_async.job_state.steps import SubmitAgain as SubmitAgain
from flux_async.job_state.steps import Verify as Verify
from flux_async.job_state.steps import WantedChecks as WantedChecks
from flux_async.job_state.steps import events_of_lost_submit as events_of_lost_submit
from flux_async.job_state.steps import next_attempt as next_attempt
from flux_async.job_state.steps import next_check as next_check
from flux_async.job_state.steps import next_step as next_step
from flux_async.job_state.steps import recover as recover
