"""The vendor without its servers: accounts, credits, tasks and links, every call carries the time.

Nothing here reads a clock, opens a socket or waits. Every method takes ``now`` in vendor seconds since the
epoch; what became due since the last call is done first, so no timer is needed. Images are made
elsewhere and passed in by `Vendor.complete`.

The rules are those of the API page; where recorded traffic differs, the traffic decides.
"""

from __future__ import annotations

import enum
import heapq
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import attrs

from flux_async.sandbox import envelopes, fault_replies, jobs_records
from flux_async.sandbox.envelopes import Reply, record_of
from flux_async.sandbox.fault_replies import Answer
from flux_async.sandbox.faults import ActiveFaults, Fault, FaultPlan, Rule, Target
from flux_async.sandbox.files import DAY, EXTENSIONS, Blob, Link, LinkTable, PublicFile
from flux_async.sandbox.jobs_records import RecordShape, job_record_of, state_of
from flux_async.sandbox.jobs_requests import read_job_request
from flux_async.sandbox.ledger import WINDOW, Attempt, Ledger
from flux_async.sandbox.models import MODELS, Api, catalogue
from flux_async.sandbox.requests import Order, Refusal, is_web_address, read_task_request


class Flag(enum.IntEnum):
    """``successFlag`` (API page, "Status Codes")."""

    GENERATING = 0
    SUCCESS = 1
    CREATE_TASK_FAILED = 2
    GENERATE_FAILED = 3


FAILURES: Final = (Flag.CREATE_TASK_FAILED, Flag.GENERATE_FAILED)


@attrs.frozen(kw_only=True)
class TaskImages:
    """The two images of a successful task: the origin (edited or generated) and the result."""

    origin: Blob
    result: Blob


@attrs.frozen(kw_only=True)
class Failure:
    """Why a task failed: ``errorCode`` and ``errorMessage``."""

    code: int
    message: str


FORCED_FAILURES: Final = {
    Fault.FAIL_400: Failure(code=400, message=envelopes.FLAGGED),
    Fault.FAIL_500: Failure(code=500, message=envelopes.INTERNAL_AS_RECORDED),
    Fault.FAIL_501: Failure(code=501, message=envelopes.NOT_MADE),
    Fault.FAIL_CREATE: Failure(code=500, message="create task failed"),
    Fault.FAIL_ENVELOPE: Failure(code=501, message=envelopes.NOT_MADE),
}
TIMED_OUT: Final = Failure(code=500, message=envelopes.TIMED_OUT)


@attrs.define(eq=False)
class Account:
    """One account, whose keys share the balance and the rate window.

    Attributes:
        window: Times of the submits in the current rate window.
        disabled: Whether its keys are refused.
    """

    number: int
    balance: float
    ledger: Ledger = attrs.Factory(Ledger)
    window: deque[float] = attrs.Factory(deque)
    disabled: bool = False


@attrs.define(eq=False, kw_only=True)
class Task:
    """One task; its end is final but for one fault.

    Attributes:
        ready_at: The end of its drawn duration.
        base_url: The origin of the links in its callbacks.
        faults: The faults that strike it.
        made: The images or the failure, once known; valid from `ready_at` on.
        ends_at: The time at which it will leave GENERATING, known once `made` is.
        ended_at: The time at which it left GENERATING.
        refunded: Credits given back.
        origin: The link to the origin, once it succeeded; `result` likewise.
        callbacks: The deliveries of its callback; with all faults and retries they are eight.
        cached_reply: The answer of record-info in this state, with the origin of its links and the state.
    """

    task_id: str
    account: Account
    request: Order
    created_at: float
    ready_at: float
    base_url: str = ""
    faults: ActiveFaults = attrs.Factory(dict)
    made: TaskImages | Failure | None = None
    ends_at: float | None = None
    flag: Flag = Flag.GENERATING
    ended_at: float | None = None
    refunded: float = 0.0
    origin: PublicFile | None = None
    result: PublicFile | None = None
    polls: int = 0
    callbacks: list[Attempt] = attrs.Factory(list)
    cached_reply: tuple[tuple[str, str], Reply] | None = None

    @property
    def subject(self) -> str:
        """The key of its line in the ledger."""
        return subject_of(self.request)

    @property
    def price(self) -> float:
        """Credits taken for it."""
        return price_of(self.request, self.faults)

    @property
    def consumed(self) -> float:
        """Credits taken and not given back."""
        return self.price - self.refunded

    @property
    def failure(self) -> Failure | None:
        """The failure that record-info shows, if any."""
        if self.flag not in FAILURES:
            return None
        return self.made if isinstance(self.made, Failure) else TIMED_OUT

    @property
    def forced_failure(self) -> Failure | None:
        """The failure that a fault forces on it, if any."""
        return next((failure for fault, failure in FORCED_FAILURES.items() if fault in self.faults), None)


def subject_of(request: Order) -> str:
    """Return the key of a request's line in the ledger."""
    return request.input_image or f"prompt:{request.prompt}"


def price_of(request: Order, faults: ActiveFaults) -> float:
    """Return the credits that a request costs."""
    return request.price * faults.get(Fault.OVERCHARGE, 1.0)


SUBMITS_PER_WINDOW: Final = 20
SIGMA: Final = 0.4  # of the log-normal time that a task takes, around its model's median

# Where pages of the vendor differ on the life of a jobs result, the shorter one holds.
JOB_RESULT_LIFE: Final = 1 * DAY


@attrs.frozen(kw_only=True)
class Submission:
    """The result of a submit.

    Attributes:
        reply: The answer.
        task: The task, if there is one.
        faults: The faults that the sender of the answer must apply.
    """

    reply: Answer
    task: Task | None = None
    faults: ActiveFaults = attrs.Factory(dict)


@attrs.frozen(kw_only=True)
class Upload:
    """A file for the upload host, with the requested folder and name."""

    folder: str
    name: str | None
    blob: Blob
    size: int


class Vendor:
    """The whole service, for any number of accounts.

    Args:
        rng: Draws ids, link names and task times.
        plan: The faults.
        began: Its start, from which the windows of the plan count.
        job_records: The shape of the records of the jobs API.
    """

    def __init__(
        self,
        rng: random.Random,
        plan: FaultPlan | None = None,
        began: float = 0.0,
        job_records: RecordShape = "new",
    ) -> None:
        self._rng = rng
        self._job_records = job_records
        self._plan = plan or FaultPlan()
        self.began: float = began
        self._accounts: dict[str, Account] = {}
        self._tasks: dict[str, Task] = {}
        self._due: list[tuple[float, str]] = []
        self._changed: set[str] = set()
        self.submits: int = 0
        self.calls: int = 0
        self.files: LinkTable = LinkTable(random.Random(rng.getrandbits(64)))  # noqa: S311 - a sandbox guards nothing

    def open_account(self, keys: Iterable[str], balance: float) -> Account:
        """Open an account for some keys."""
        account = Account(self._rng.randrange(10**11, 10**12), balance)
        self._accounts.update(dict.fromkeys(keys, account))
        return account

    def account(self, key: str | None) -> Account | None:
        """Return the account of an accepted key, or None."""
        account = self._accounts.get(key) if key is not None else None
        return None if account is None or account.disabled else account

    def faults_of_call(self, target: Target, now: float, asked: Iterable[Rule] = ()) -> ActiveFaults:
        """Return the faults of a call without a task."""
        self.calls += 1
        return self._plan.for_call(target, self.calls, now - self.began, asked)

    def _rejection(self, key: str | None, now: float) -> Reply | None:
        """Return the answer to a call with a bad key or during maintenance, or None."""
        self.advance(now)
        account = self.account(key)
        if account is None:
            return envelopes.unauthorized(key_sent=key is not None)
        if self._plan.includes_maintenance and self.faults_of_call(Target.CALL, now).keys() & {
            Fault.MAINTENANCE
        }:
            account.ledger.strike([Fault.MAINTENANCE])
            return envelopes.refusal(455, envelopes.MAINTENANCE)
        return None

    def submit(
        self,
        key: str | None,
        body: object,
        now: float,
        base_url: str = "",
        asked: Iterable[Rule] = (),
        *,
        api: Api = Api.KONTEXT,
    ) -> Submission:
        """Answer POST generate or createTask: create a task and take its price, or refuse."""
        if (rejection := self._rejection(key, now)) is not None:
            return Submission(reply=rejection)
        account = self._accounts[key or ""]
        self.submits += 1
        account.ledger.submit(now)
        request = read_job_request(body) if api is Api.JOBS else read_task_request(body)
        if isinstance(request, Refusal):
            refusal = self._refusal(account, request, {}, now) or request
            return self._refuse(account, refusal.code, envelopes.refusal(refusal.code, refusal.message))
        account.ledger.line(subject_of(request)).submits += 1
        account.ledger.unknown_fields.update(request.unknown)
        rules = (*request.faults, *asked)
        faults = self._plan.for_submit(self.submits, now - self.began, rules)
        return self._fault_before_task(account, request, faults) or self._accept(
            account, request, faults, now, base_url
        )

    def _fault_before_task(self, account: Account, request: Order, faults: ActiveFaults) -> Submission | None:
        """Apply the faults that leave no task; return the answer if one of them strikes."""
        ledger = account.ledger
        if account.ledger.submits > faults.get(Fault.KEY_DISABLED, math.inf):
            account.disabled = True
            ledger.strike([Fault.KEY_DISABLED])
            return self._refuse(account, 401, envelopes.unauthorized(key_sent=True))
        if (
            Fault.MAINTENANCE in faults and not self._plan.includes_maintenance
        ):  # asked for by this submit alone
            ledger.strike([Fault.MAINTENANCE])
            return self._refuse(account, 455, envelopes.refusal(455, envelopes.MAINTENANCE))
        if account.balance and ledger.accepted >= faults.get(Fault.BALANCE_OUT, math.inf):
            account.balance = 0.0
            ledger.strike([Fault.BALANCE_OUT])
        fault = fault_replies.refused(faults, ledger.line(subject_of(request)).submits)
        if fault is None:
            return None
        ledger.strike([fault])
        if fault is Fault.DROP_REQUEST:
            ledger.dropped += 1
            return Submission(reply=fault_replies.BAD_GATEWAY, faults={fault: 1})
        answer = fault_replies.REFUSALS[fault]
        code = answer.body["code"] if isinstance(answer, Reply) else answer.status
        assert isinstance(code, int)  # noqa: S101 - in an envelope of ours
        return self._refuse(account, code, answer)

    def _accept(
        self, account: Account, request: Order, faults: ActiveFaults, now: float, base_url: str
    ) -> Submission:
        refusal = self._refusal(account, request, faults, now)
        if refusal is not None:
            return self._refuse(account, refusal.code, envelopes.refusal(refusal.code, refusal.message))
        task = self._create(account, request, faults, now, base_url)
        names = ("taskId", "recordId") if request.api is Api.JOBS else ("taskId",)
        reply = envelopes.success(dict.fromkeys(names, task.task_id))
        return Submission(reply=fault_replies.answered(reply, faults), task=task, faults=task.faults)

    @staticmethod
    def _refuse(account: Account, code: int, answer: Answer) -> Submission:
        account.ledger.refused[code] += 1
        return Submission(reply=answer)

    def _refusal(
        self, account: Account, request: Order | Refusal, faults: ActiveFaults, now: float
    ) -> Refusal | None:
        # The rate limit comes first: submits with bad parameters count as well.
        while account.window and now - account.window[0] >= WINDOW:
            account.window.popleft()
        if len(account.window) >= SUBMITS_PER_WINDOW:
            return Refusal(429, envelopes.TOO_FAST)
        account.window.append(now)
        if isinstance(request, Refusal):
            return request
        return Refusal(402, envelopes.NO_CREDITS) if account.balance < price_of(request, faults) else None

    def _create(
        self, account: Account, request: Order, faults: ActiveFaults, now: float, base_url: str
    ) -> Task:
        task_id = f"{self._rng.getrandbits(128):032x}"
        seconds = self._rng.lognormvariate(math.log(MODELS[request.model].median_s), SIGMA)
        active = {fault: n for fault, n in faults.items() if fault.target not in (Target.CALL, Target.SUBMIT)}
        task = Task(
            task_id=task_id,
            account=account,
            request=request,
            created_at=now,
            ready_at=now + seconds,
            base_url=base_url,
            faults=active,
        )
        self._tasks[task_id] = task
        self._changed.add(task_id)
        account.balance -= task.price
        account.ledger.accept(task.subject, request.digest, task_id, task.price, now, api=request.api)
        account.ledger.strike(active)
        return task

    def complete(self, task_id: str, made: TaskImages | Failure, now: float) -> None:
        """Set the images or the failure of a task, which ends at its time or now; a failure is refunded."""
        self.advance(now)
        task = self._tasks[task_id]
        # The first end is final.
        if task.made is None and Fault.NEVER_ENDS not in task.faults:
            task.made = task.forced_failure or made
            task.ends_at = max(task.ready_at, now)
            self._changed.add(task_id)
            heapq.heappush(self._due, (task.ends_at, task_id))

    def advance(self, now: float) -> None:
        """End the tasks that are due by `now`."""
        while self._due and self._due[0][0] <= now:
            at, task_id = heapq.heappop(self._due)
            self._settle(self._tasks[task_id], at)

    def _settle(self, task: Task, at: float) -> None:
        flips = Fault.TIMEOUT_FLIPS in task.faults and task.flag is Flag.GENERATING
        task.ended_at, task.cached_reply = at, None
        self._changed.add(task.task_id)
        match task.made:
            case TaskImages() if flips:
                task.flag = Flag.GENERATE_FAILED  # not final, so nothing is refunded
                heapq.heappush(self._due, (at + task.faults[Fault.TIMEOUT_FLIPS], task.task_id))
            case TaskImages(origin=origin, result=result):
                task.flag = Flag.SUCCESS
                task.origin = self.files.publish(Link.ORIGIN, origin, at)
                life = JOB_RESULT_LIFE if task.request.api is Api.JOBS else None
                task.result = self.files.publish(Link.RESULT, result, at, faults=task.faults, life=life)
            case _:
                created = Fault.FAIL_CREATE not in task.faults
                task.flag = Flag.GENERATE_FAILED if created else Flag.CREATE_TASK_FAILED
                self._refund(task)

    def _refund(self, task: Task) -> None:
        if Fault.NO_REFUND in task.faults:
            return
        task.refunded = task.price
        task.account.balance += task.price
        task.account.ledger.refund(task.subject, task.request.digest, task.price)

    def record_info(
        self, key: str | None, task_id: str | None, now: float, base_url: str, *, api: Api = Api.KONTEXT
    ) -> Answer:
        """Answer GET record-info or recordInfo; links begin with `base_url`.

        A task is found only through the API of its submit: whether the other one has it is not known.
        """
        if (rejection := self._rejection(key, now)) is not None:
            return rejection
        account = self._accounts[key or ""]
        if not task_id:
            return envelopes.refusal(422, "Please enter taskId.")
        no_record = envelopes.refusal(422, jobs_records.NO_RECORD if api is Api.JOBS else envelopes.NO_RECORD)
        task = self._tasks.get(task_id)
        if task is None or task.account is not account or task.request.api is not api:
            account.ledger.poll(None)
            return no_record
        task.polls += 1
        self._changed.add(task_id)
        account.ledger.poll(task.subject)
        if not task.faults:
            return self._record_reply(task, base_url, now)
        return fault_replies.poll_reply(
            lambda: self._record_reply(task, base_url, now),
            no_record,
            task.faults,
            task.polls,
            now - task.created_at,
        )

    def _record_reply(self, task: Task, base_url: str, now: float) -> Reply:
        """Return the answer of record-info; encoded once for each state of a task."""
        state = (base_url, state_of(task, now) if task.request.api is Api.JOBS else "")
        if task.cached_reply is None or task.cached_reply[0] != state:
            if Fault.FAIL_ENVELOPE in task.faults and task.failure is not None:
                reply = envelopes.refusal(task.failure.code, task.failure.message)
            elif task.request.api is Api.JOBS:
                reply = envelopes.success(job_record_of(task, base_url, now, self._job_records))
            else:
                reply = envelopes.success(record_of(task, base_url))
            task.cached_reply = (state, reply)
        return task.cached_reply[1]

    def drops_poll(self, task_id: str | None) -> bool:
        """Return whether the connection closes at this poll, which is counted already."""
        task = self._tasks.get(task_id or "")
        return task is not None and task.polls <= task.faults.get(Fault.POLL_DROP, 0)

    def credit(self, key: str | None, now: float, asked: Iterable[Rule] = ()) -> Reply:
        """Answer GET credit: a bare number."""
        if (rejection := self._rejection(key, now)) is not None:
            return rejection
        account = self._accounts[key or ""]
        faults = self.faults_of_call(Target.CREDITS, now, asked)
        account.ledger.strike(faults)
        return fault_replies.balance(account.balance, faults)

    def models(
        self, key: str | None, now: float, words: str = "", provider: str = "", task_types: str = ""
    ) -> Reply:
        """Answer GET models: the models of the jobs API, filtered."""
        rejection = self._rejection(key, now)
        return rejection or envelopes.success(catalogue(words, provider, task_types))

    def download_url(self, key: str | None, body: object, now: float, base_url: str) -> Reply:
        """Answer POST download-url: a bare string that lives 20 minutes, for results only."""
        if (rejection := self._rejection(key, now)) is not None:
            return rejection
        url = body.get("url") if isinstance(body, dict) else None
        if not isinstance(url, str) or not url:
            return envelopes.refusal(422, "Please enter url.")
        file = self.files.find(_path_at(url, base_url), now)
        if file is None or file.link is not Link.RESULT or Fault.LINK_REFUSED in file.faults:
            return envelopes.refusal(422, envelopes.WRONG_URL)
        fresh = self.files.publish(Link.FRESH, file.blob, now)
        return envelopes.success(base_url + fresh.path)

    def upload(self, account: Account, upload: Upload, now: float, base_url: str) -> Reply:
        """Store an upload and return the answer of the upload host; a file of the same name is replaced."""
        name = upload.name
        if name is None:
            letters = "0123456789abcdefghijklmnopqrstuvwxyz"
            extension = EXTENSIONS.get(upload.blob.content_type, "bin")
            name = f"{int(now * 1000)}-{''.join(self._rng.choices(letters, k=11))}.{extension}"
        path = f"kieai/{account.number}/{upload.folder}/{name}"
        file = self.files.publish(Link.UPLOAD, upload.blob, now, path=f"/{path}")
        uploaded_at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        data = {
            "success": True,
            "fileName": name,
            "filePath": path,
            "downloadUrl": base_url + quote(file.path),
            "fileSize": upload.size,
            "mimeType": upload.blob.content_type,
            "uploadedAt": uploaded_at.replace("+00:00", "Z"),
        }
        return Reply({"success": True, "code": 200, "msg": "File uploaded successfully", "data": data})

    def restore(self, tasks: Iterable[Task], submits: int, calls: int) -> None:
        """Add the tasks of an earlier process and continue its counts."""
        self.submits, self.calls = submits, calls
        for task in tasks:
            self._tasks[task.task_id] = task
            if task.flag is Flag.GENERATING and task.ends_at is not None:
                heapq.heappush(self._due, (task.ends_at, task.task_id))
            elif task.ended_at is not None and task.flag is Flag.GENERATE_FAILED and task.refunded == 0:
                flips = task.faults.get(Fault.TIMEOUT_FLIPS)
                if flips is not None and isinstance(task.made, TaskImages):
                    heapq.heappush(self._due, (task.ended_at + flips, task.task_id))

    def touch(self, task: Task) -> None:
        """Mark a task as changed."""
        self._changed.add(task.task_id)

    def take_changed(self) -> list[Task]:
        """Return the tasks that may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return sorted((self._tasks[task_id] for task_id in changed), key=lambda task: task.created_at)

    def all_tasks(self) -> Iterable[Task]:
        """Return the tasks, the oldest first."""
        return self._tasks.values()

    def newest(self, now: float) -> Iterator[Task]:
        """Yield the tasks, the newest first."""
        self.advance(now)
        return reversed(self._tasks.values())


def _path_at(url: str, base_url: str) -> str:
    """Return the path of `url` where it leads to `base_url`, or an empty one."""
    if not is_web_address(url):
        return ""
    parts, base = urlsplit(url), urlsplit(base_url)
    return unquote(parts.path) if (parts.scheme, parts.netloc) == (base.scheme, base.netloc) else ""


def task_json(task: Task) -> dict[str, object]:
    """Return a task as the ledger shows it."""
    failure = task.failure
    return {
        "taskId": task.task_id,
        "api": str(task.request.api),
        "model": task.request.model,
        "kind": str(task.request.kind),
        "image": task.request.input_image,
        "callBackUrl": task.request.call_back_url,
        "state": task.flag.name,
        "createdAt": task.created_at,
        "endedAt": task.ended_at,
        "charged": task.price,
        "refunded": task.refunded,
        "polls": task.polls,
        "error": failure.message if failure else None,
        "faults": sorted(task.faults),
        "callbacks": [attrs.asdict(attempt) for attempt in task.callbacks],
    }
