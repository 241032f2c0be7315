"""The vendor without its servers: accounts, credits, tasks and links, driven by calls that carry the time.

Nothing here reads a clock, opens a socket or waits. Every method takes ``now`` in vendor seconds since the
epoch; whatever became due since the last call is settled first, so no timer is needed. Pictures are made
elsewhere and handed in with `Vendor.deliver` or `Vendor.fail`.

The rules are those of the API page; where recorded traffic of the service differs from it, the traffic wins.
"""

from __future__ import annotations

import enum
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import attrs

from flux_async.sandbox import replies
from flux_async.sandbox.faults import Fault, FaultPlan
from flux_async.sandbox.file_book import EXTENSIONS, Blob, FileBook, Link, PublicFile
from flux_async.sandbox.ledger import Attempt, Ledger
from flux_async.sandbox.parameters import Order, Refusal, is_web_address, read_order
from flux_async.sandbox.replies import Reply

SUBMITS_PER_WINDOW: Final = 20
WINDOW: Final = 10.0  # vendor seconds

# Seconds a task takes: the median, and the sigma of the log-normal around it.
MEDIAN_SECONDS: Final = {"flux-kontext-pro": 12.0, "flux-kontext-max": 20.0}
SIGMA: Final = 0.4


class Flag(enum.IntEnum):
    """``successFlag`` (API page, "Status Codes")."""

    GENERATING = 0
    SUCCESS = 1
    CREATE_TASK_FAILED = 2
    GENERATE_FAILED = 3


@attrs.frozen(kw_only=True)
class Pictures:
    """The two pictures of a successful task: the one edited (or made) and the result."""

    origin: Blob
    result: Blob


@attrs.frozen(kw_only=True)
class Failure:
    """Why a task failed: ``errorCode`` and ``errorMessage``."""

    code: int
    message: str


@attrs.define(eq=False)
class Account:
    """One customer: the keys share the balance and the window."""

    number: int
    balance: float
    ledger: Ledger = attrs.Factory(Ledger)
    window: deque[float] = attrs.Factory(deque)


@attrs.define(eq=False, kw_only=True)
class Task:
    """One task, from creation to its sticky end.

    Attributes:
        ready_at: When its drawn time has passed.
        base_url: The address its submit was sent to; links in its callbacks begin with it.
        faults: What goes wrong with it.
        made: The pictures or the failure, once known; they count from `ready_at` on.
        ends_at: When it will leave GENERATING, known once `made` is.
        ended_at: When it left GENERATING.
        origin: The link to the origin, once it succeeded; `result` likewise.
        callbacks: The deliveries of its callback; with all faults and retries they are eight.
    """

    task_id: str
    account: Account
    order: Order
    created_at: float
    ready_at: float
    base_url: str = ""
    faults: frozenset[Fault] = frozenset()
    made: Pictures | Failure | None = None
    ends_at: float | None = None
    flag: Flag = Flag.GENERATING
    ended_at: float | None = None
    origin: PublicFile | None = None
    result: PublicFile | None = None
    polls: int = 0
    callbacks: list[Attempt] = attrs.Factory(list)

    @property
    def subject(self) -> str:
        """Under which the ledger files it."""
        return _subject(self.order)


@attrs.frozen(kw_only=True)
class Submission:
    """The answer to a submit, and the task if there is one."""

    reply: Reply
    task: Task | None = None


@attrs.frozen(kw_only=True)
class Upload:
    """A file that arrived at the upload host, and the folder and name it asks for."""

    folder: str
    name: str | None
    blob: Blob
    size: int


class Vendor:
    """The whole service, for any number of accounts.

    Args:
        rng: Draws ids, link names and task times; the only randomness there is.
        faults: What goes wrong with which tasks; it only marks them, the callers carry it out.
    """

    def __init__(self, rng: random.Random, faults: FaultPlan | None = None) -> None:
        self._rng = rng
        self._faults = faults or FaultPlan()
        self._accounts: dict[str, Account] = {}
        self._tasks: dict[str, Task] = {}
        self._due: list[tuple[float, str]] = []
        self.files: FileBook = FileBook(random.Random(rng.getrandbits(64)))  # noqa: S311 - a sandbox guards nothing

    def open_account(self, keys: Iterable[str], balance: float) -> Account:
        """Open an account for one or several keys."""
        account = Account(self._rng.randrange(10**11, 10**12), balance)
        self._accounts.update(dict.fromkeys(keys, account))
        return account

    def account(self, key: str | None) -> Account | None:
        """Return the account a key belongs to."""
        return self._accounts.get(key) if key is not None else None

    def submit(self, key: str | None, body: object, now: float, base_url: str = "") -> Submission:
        """Answer POST generate: create a task and take its price, or refuse."""
        self.advance(now)
        account = self.account(key)
        if account is None:
            return Submission(reply=replies.unauthorized(key_sent=key is not None))
        order = read_order(body)
        account.ledger.submits += 1
        if isinstance(order, Order):
            account.ledger.line(_subject(order)).submits += 1
        refusal = self._refusal(account, order, now)
        if refusal is not None:
            account.ledger.refused[refusal.code] += 1
            return Submission(reply=replies.refusal(refusal.code, refusal.message))
        assert isinstance(order, Order)  # noqa: S101 - anything else is a refusal
        task = self._create(account, order, now, base_url)
        return Submission(reply=replies.success({"taskId": task.task_id}), task=task)

    def _refusal(self, account: Account, order: Order | Refusal, now: float) -> Refusal | None:
        # The gate stands before the parameters: a submit that is later refused for them has passed it too.
        while account.window and now - account.window[0] >= WINDOW:
            account.window.popleft()
        if len(account.window) >= SUBMITS_PER_WINDOW:
            return Refusal(429, replies.TOO_FAST)
        account.window.append(now)
        if isinstance(order, Refusal):
            return order
        return Refusal(402, replies.NO_CREDITS) if account.balance < order.price else None

    def _create(self, account: Account, order: Order, now: float, base_url: str) -> Task:
        task_id = f"{self._rng.getrandbits(128):032x}"
        seconds = self._rng.lognormvariate(math.log(MEDIAN_SECONDS[order.model]), SIGMA)
        task = Task(
            task_id=task_id,
            account=account,
            order=order,
            created_at=now,
            ready_at=now + seconds,
            base_url=base_url,
            faults=order.faults | self._faults.drawn_for(task_id),
        )
        self._tasks[task_id] = task
        account.balance -= order.price
        account.ledger.accept(task.subject, task_id, order.price)
        return task

    def deliver(self, task_id: str, pictures: Pictures, now: float) -> None:
        """Hand in the pictures of a task; it succeeds when its time has passed as well."""
        self._make(task_id, pictures, now)

    def fail(self, task_id: str, failure: Failure, now: float) -> None:
        """Let a task fail when its time has passed, and its credits go back."""
        self._make(task_id, failure, now)

    def _make(self, task_id: str, made: Pictures | Failure, now: float) -> None:
        self.advance(now)
        task = self._tasks[task_id]
        if task.made is None:  # the first word stands: an end is sticky
            task.made = made
            task.ends_at = max(task.ready_at, now)
            heapq.heappush(self._due, (task.ends_at, task_id))

    def advance(self, now: float) -> None:
        """Settle what is due by `now`."""
        while self._due and self._due[0][0] <= now:
            at, task_id = heapq.heappop(self._due)
            self._settle(self._tasks[task_id], at)

    def _settle(self, task: Task, at: float) -> None:
        task.ended_at = at
        match task.made:
            case Pictures(origin=origin, result=result):
                task.flag = Flag.SUCCESS
                task.origin = self.files.publish(Link.ORIGIN, origin, at)
                task.result = self.files.publish(Link.RESULT, result, at)
            case _:
                task.flag = Flag.GENERATE_FAILED
                task.account.balance += task.order.price
                task.account.ledger.refund(task.subject, task.order.price)

    def record_info(self, key: str | None, task_id: str | None, now: float, base_url: str) -> Reply:
        """Answer GET record-info; links begin with `base_url`."""
        self.advance(now)
        account = self.account(key)
        if account is None:
            return replies.unauthorized(key_sent=key is not None)
        if not task_id:
            return replies.refusal(422, "Please enter taskId.")
        task = self._tasks.get(task_id)
        if task is None or task.account is not account:
            account.ledger.poll(None)
            return replies.refusal(422, replies.NO_RECORD)
        task.polls += 1
        account.ledger.poll(task.subject)
        return replies.success(_record(task, base_url))

    def credit(self, key: str | None, now: float) -> Reply:
        """Answer GET credit: a bare number."""
        self.advance(now)
        account = self.account(key)
        if account is None:
            return replies.unauthorized(key_sent=key is not None)
        return replies.success(account.balance)

    def download_url(self, key: str | None, body: object, now: float, base_url: str) -> Reply:
        """Answer POST download-url: a bare string that lives 20 minutes, for results only."""
        self.advance(now)
        if self.account(key) is None:
            return replies.unauthorized(key_sent=key is not None)
        url = body.get("url") if isinstance(body, dict) else None
        if not isinstance(url, str) or not url:
            return replies.refusal(422, "Please enter url.")
        file = self.files.find(_path_at(url, base_url), now)
        if file is None or file.link is not Link.RESULT:
            return replies.refusal(422, replies.WRONG_URL)
        fresh = self.files.publish(Link.FRESH, file.blob, now)
        return replies.success(base_url + fresh.path)

    def upload(self, account: Account, upload: Upload, now: float, base_url: str) -> Reply:
        """File an upload and answer as the upload host does; the same name replaces the older file."""
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

    def newest(self, now: float) -> Iterator[Task]:
        """Yield the tasks, the newest first."""
        self.advance(now)
        return reversed(self._tasks.values())


def _subject(order: Order) -> str:
    return order.input_image or f"prompt:{order.prompt}"


def _record(task: Task, base_url: str) -> dict[str, object]:
    failure = task.made if task.flag is Flag.GENERATE_FAILED and isinstance(task.made, Failure) else None
    response = None
    if task.origin is not None and task.result is not None:
        response = {
            "originImageUrl": base_url + task.origin.path,
            "resultImageUrl": base_url + task.result.path,
        }
    # The echo holds the fields that were sent, in an order of the vendor's own.
    echo = json.dumps(task.order.sent, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return {
        "taskId": task.task_id,
        "paramJson": echo,
        "response": response,
        # Rounded up, so that it may lie a moment in the future: seen in recorded traffic.
        "completeTime": None if task.ended_at is None else math.ceil(task.ended_at) * 1000,
        "createTime": math.floor(task.created_at) * 1000,
        "successFlag": int(task.flag),
        "errorCode": failure.code if failure else None,
        "errorMessage": failure.message if failure else "" if task.flag is Flag.SUCCESS else None,
    }


def _path_at(url: str, base_url: str) -> str:
    """Return the path of `url` where it leads to `base_url`, or an empty one."""
    if not is_web_address(url):
        return ""
    parts, base = urlsplit(url), urlsplit(base_url)
    return unquote(parts.path) if (parts.scheme, parts.netloc) == (base.scheme, base.netloc) else ""
