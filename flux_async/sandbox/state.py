"""The state file of a sandbox: SQLite, with the images in a folder beside it.

A task is in the file before its submit is answered, so no id that a client has is lost. What
changes afterwards (polls, ends, deliveries) follows within a quarter of a second. After a kill the next start
repeats the last moment: tasks end at the same time with the same result, and a callback that was in flight is
delivered again. The file is whole after any kill; a power cut may take the last second.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import cattrs

from flux_async.sandbox.callbacks import Callback, CallbackQueue
from flux_async.sandbox.faults import FAULTS_BY_NAME
from flux_async.sandbox.files import PublicFile
from flux_async.sandbox.ledger import Ledger, Line
from flux_async.sandbox.settings import SandboxError
from flux_async.sandbox.simulator import Account, Task, TaskImages, Vendor

VERSION: Final = 2
_PATIENCE: Final = 1.0  # seconds
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS task (id TEXT PRIMARY KEY, number INTEGER NOT NULL, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS line (subject TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS link (path TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS callback (task TEXT PRIMARY KEY, at REAL NOT NULL, value TEXT NOT NULL);
"""
_NOT_OF_A_TASK: Final = frozenset({"account", "cached_reply"})

converter: Final = cattrs.Converter()
converter.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)


@attrs.frozen(kw_only=True)
class Facts:
    """The values of the sandbox as a whole.

    Attributes:
        now: The vendor's time at the last write.
        began: The first start; `starts` counts all starts.
        submits: Submits so far, and `calls`, as the plan of faults counts them.
    """

    now: float
    began: float
    starts: int
    submits: int
    calls: int
    number: int
    balance: float
    disabled: bool
    window: list[float]


class State:
    """The state file of one sandbox, locked for other processes.

    Args:
        path: Its path; a missing file is created.

    Raises:
        SandboxError: It cannot be used, or is in use.
    """

    def __init__(self, path: Path) -> None:
        self._numbers = 0
        self._file = _opened(path)
        self.folder: Path = path.with_name(f"{path.name}.files")
        self.facts: Facts | None = self._read_facts()
        self.starts: int = self.facts.starts + 1 if self.facts else 1
        self._written: Facts | None = None

    def _one(self, question: str, *values: object) -> Any:
        return _first(self._file, question, *values)

    def _read_facts(self) -> Facts | None:
        found = self._one("SELECT value FROM fact WHERE name = 'facts'")
        return None if found is None else converter.structure(json.loads(found), Facts)

    # Reading

    def restore(
        self, vendor: Vendor, account: Account, callbacks: CallbackQueue
    ) -> dict[str, tuple[str, str]]:
        """Restore everything, and return the names of the thumbnails by task."""
        facts = self.facts
        if facts is None:
            return {}
        account.number, account.balance, account.disabled = facts.number, facts.balance, facts.disabled
        account.window.extend(facts.window)
        account.ledger = self._read_ledger()
        vendor.files.restore(
            converter.structure(json.loads(value), PublicFile)
            for (value,) in self._file.execute("SELECT value FROM link")
        )
        tasks: dict[str, Task] = {}
        thumbnails: dict[str, tuple[str, str]] = {}
        for task_id, value in self._file.execute("SELECT id, value FROM task ORDER BY number"):
            read = json.loads(value)
            if (names := read.pop("thumbnails")) is not None:
                thumbnails[task_id] = (names[0], names[1])
            tasks[task_id] = _read_task(read, account)
        self._numbers = len(tasks)
        vendor.restore(tasks.values(), facts.submits, facts.calls)
        for task_id, at, value in self._file.execute("SELECT task, at, value FROM callback"):
            left = [None if name is None else FAULTS_BY_NAME[name] for name in json.loads(value)["left"]]
            callbacks.restore(tasks[task_id], left, json.loads(value)["failures"], at)
        return thumbnails

    def _read_ledger(self) -> Ledger:
        totals = json.loads(self._one("SELECT value FROM fact WHERE name = 'ledger'"))
        lines = {
            subject: converter.structure(json.loads(value), Line)
            for subject, value in self._file.execute("SELECT subject, value FROM line")
        }
        return attrs.evolve(converter.structure({**totals, "images": {}}, Ledger), images=lines)

    # Writing

    def write(
        self,
        vendor: Vendor,
        account: Account,
        callbacks: CallbackQueue,
        now: float,
        thumbnails: Callable[[str], tuple[str, str] | None],
    ) -> None:
        """Write what changed since the last call, in one transaction."""
        facts = self._facts_of(vendor, account, now)
        tasks, lines = vendor.take_changed(), account.ledger.take_changed()
        links, pending = vendor.files.take_changed(), callbacks.take_changed()
        if not (tasks or lines or links or pending) and self._says(facts):
            return
        totals = converter.unstructure(attrs.evolve(account.ledger, images={}))
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            self._put("fact", ("facts", _text(facts)), ("ledger", json.dumps(totals)))
            self._write_tasks(tasks, thumbnails)
            self._put("line", *((subject, _text(line)) for subject, line in lines))
            self._write_links(links)
            self._write_callbacks(pending)
        self._written = facts

    def _says(self, facts: Facts) -> bool:
        return self._written is not None and facts == attrs.evolve(self._written, now=facts.now)

    def _facts_of(self, vendor: Vendor, account: Account, now: float) -> Facts:
        return Facts(
            now=now,
            began=vendor.began,
            starts=self.starts,
            submits=vendor.submits,
            calls=vendor.calls,
            number=account.number,
            balance=account.balance,
            disabled=account.disabled,
            window=list(account.window),
        )

    def _write_tasks(
        self, tasks: Iterable[Task], thumbnails: Callable[[str], tuple[str, str] | None]
    ) -> None:
        for task in tasks:
            value = json.dumps({**_written(task), "thumbnails": thumbnails(task.task_id)})
            changed = self._file.execute("UPDATE task SET value = ? WHERE id = ?", (value, task.task_id))
            if not changed.rowcount:
                self._numbers += 1
                self._put("task", (task.task_id, self._numbers, value))

    def _write_links(self, links: Iterable[tuple[str, PublicFile | None]]) -> None:
        for path, file in links:
            if file is None:
                self._file.execute("DELETE FROM link WHERE path = ?", (path,))
            else:
                self._put("link", (path, _text(file)))

    def _write_callbacks(self, changed: Iterable[tuple[str, tuple[float, Callback] | None]]) -> None:
        for task_id, pending in changed:
            if pending is None:
                self._file.execute("DELETE FROM callback WHERE task = ?", (task_id,))
            else:
                at, callback = pending
                self._put("callback", (task_id, at, json.dumps(_pending(callback))))

    def _put(self, table: str, *rows: tuple[object, ...]) -> None:
        for row in rows:
            marks = ", ".join("?" * len(row))
            self._file.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)  # noqa: S608 - our names

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _opened(path: Path) -> sqlite3.Connection:
    """Return an exclusive connection to a file of this version."""
    try:
        file = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    except sqlite3.Error as error:
        raise _unusable(path, error) from None
    try:
        _prepare(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _prepare(file: sqlite3.Connection, path: Path) -> None:
    try:
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        version = _first(file, "PRAGMA user_version")
        if version in {0, VERSION}:
            file.executescript(f"{_SCHEMA}PRAGMA user_version = {VERSION};")
    except sqlite3.Error as error:
        raise _unusable(path, error) from None
    if version not in {0, VERSION}:
        raise SandboxError(f"the state file {path} has an unsupported version: delete it, or choose another")


def _unusable(path: Path, error: sqlite3.Error) -> SandboxError:
    why = "another sandbox is using it" if "locked" in str(error) else str(error)
    return SandboxError(f"the state file {path} cannot be used: {why}")


def _first(file: sqlite3.Connection, question: str, *values: object) -> Any:
    row = file.execute(question, values).fetchone()
    return None if row is None else row[0]


def names_in_use(vendor: Vendor, thumbnails: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield the names of all images in use."""
    yield from vendor.files.names()
    for task in vendor.all_tasks():
        made = task.made
        if isinstance(made, TaskImages):
            yield from (made.origin.name, made.result.name)
    for names in thumbnails.values():
        yield from names


def _written(task: Task) -> dict[str, Any]:
    names = (field.name for field in attrs.fields(Task) if field.name not in _NOT_OF_A_TASK)
    return {name: converter.unstructure(getattr(task, name)) for name in names}


def _read_task(read: Mapping[str, Any], account: Account) -> Task:
    attrs.resolve_types(Task)
    fields = {field.name: field for field in attrs.fields(Task) if field.name not in _NOT_OF_A_TASK}
    values = {name: converter.structure(read[name], field.type or object) for name, field in fields.items()}
    return Task(account=account, **values)


def _pending(callback: Callback) -> dict[str, object]:
    return {"left": list(callback.left), "failures": callback.failures}


def _text(value: object) -> str:
    return json.dumps(converter.unstructure(value))
