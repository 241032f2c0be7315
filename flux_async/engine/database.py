"""One PostgreSQL database: connections, transactions that outlive a restart of the server, and the schema."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeAlias, TypeVar

import anyio.to_thread
import attrs
from dbos import DBOS, DBOSClient
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from flux_async.clock import Clock, SystemClock
from flux_async.errors import ConfigurationError, JournalError

logger: logging.Logger = logging.getLogger("flux_async.engine")

T = TypeVar("T")
Row: TypeAlias = Mapping[str, Any]

PATIENCE_S = 60.0
"""Seconds for which one operation waits for a server that restarts."""
_RETRY_S = 0.5
_CONNECTIONS = 8
_SCHEMA_AGAIN_S = 0.1
_SCHEMA_LOCK = 0x666C7578
"""Key of the advisory lock under which the schema is made."""


@attrs.define(eq=False)
class Database:
    """Connections to one database.

    Attributes:
        dsn: Its address, ``postgresql://user@host/name``.
        clock: The reader of time.

    Raises:
        ConfigurationError: ``dsn`` is no address of PostgreSQL.
    """

    dsn: str = attrs.field(repr=False)
    clock: Clock = attrs.field(factory=SystemClock, repr=False)
    _url: URL = attrs.field(init=False, repr=False)
    _engine: AsyncEngine | None = attrs.field(default=None, init=False, repr=False)
    _client: DBOSClient | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        try:
            self._url = make_url(self.dsn)
        except ArgumentError:
            raise _no_dsn() from None
        if self._url.get_backend_name() not in {"postgresql", "postgres"}:
            raise _no_dsn()

    def __str__(self) -> str:
        return f"PostgreSQL at {self._url.host or 'the local socket'}:{self._url.port or 5432}"

    @property
    def conninfo(self) -> str:
        """The address as PostgreSQL's own library reads it."""
        return self._url.set(drivername="postgresql").render_as_string(hide_password=False)

    @property
    def client(self) -> DBOSClient:
        """DBOS's client: enqueues, lists and resumes workflows."""
        if self._client is None:
            self._client = DBOSClient(system_database_url=self.sqlalchemy_url, lazy=True)
        return self._client

    @property
    def sqlalchemy_url(self) -> str:
        """The address as SQLAlchemy and DBOS read it."""
        return self._url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return self._engine is not None

    async def open(self) -> None:
        """Connect, and make the schema where there is none.

        Raises:
            ConfigurationError: The server does not answer, or refuses the user or the database.
        """
        if self._engine is not None:
            return
        engine = create_async_engine(self.sqlalchemy_url, pool_size=_CONNECTIONS, max_overflow=0)
        try:
            async with self._schema_lock(engine):
                await anyio.to_thread.run_sync(DBOS.migrate, self.sqlalchemy_url)
                async with engine.begin() as connection:
                    schema = files(__package__).joinpath("schema.sql").read_text("utf-8")
                    await connection.exec_driver_sql(schema)
        except (DBAPIError, OSError) as error:
            await engine.dispose()
            raise ConfigurationError(
                f"{self} cannot be used: {in_words(error)}.",
                advice="Check the DSN, and that the server runs; nothing was sent.",
            ) from None
        self._engine = engine

    @asynccontextmanager
    async def _schema_lock(self, engine: AsyncEngine) -> AsyncIterator[None]:
        """Hold while the schema is made: processes that start at once do so one after the other.

        No transaction waits for the lock: DBOS builds indexes concurrently, which wait for all transactions.
        """
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            take = f"SELECT pg_try_advisory_lock({_SCHEMA_LOCK}) AS is_mine"
            while not (await query(connection, take))[0]["is_mine"]:
                await self.clock.sleep(_SCHEMA_AGAIN_S)
            try:
                yield
            finally:
                await connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_SCHEMA_LOCK})")

    async def aclose(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await anyio.to_thread.run_sync(client.destroy)
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    async def transaction(
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, is_one_statement: bool = False
    ) -> T:
        """Run ``work`` in a transaction and return after its commit.

        A connection that breaks is replaced, and ``work`` runs again: it must find out whether its commit had
        succeeded. One statement needs no transaction around it, which would be two more messages.

        Raises:
            JournalError: The server did not answer for a minute, or refused a statement.
        """
        if self._engine is None:
            raise JournalError(f"{self} is not connected.", advice="Use it as `async with`.")
        ends = self.clock.monotonic() + PATIENCE_S
        single = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        while True:
            try:
                async with single.connect() if is_one_statement else self._engine.begin() as connection:
                    return await work(connection)
            except IntegrityError:
                raise
            except (DBAPIError, OSError) as error:
                if not is_lost(error) or self.clock.monotonic() > ends:
                    raise JournalError(
                        f"{self} failed: {in_words(error)}.", advice="Check the server, and its log."
                    ) from None
                logger.info("%s does not answer: %s", self, in_words(error))
            await self.clock.sleep(_RETRY_S)

    async def rows(self, sql: str, **values: object) -> Sequence[Row]:
        """Run one statement and return its rows; raises as :meth:`transaction` does."""
        return await self.transaction(
            lambda connection: query(connection, sql, **values), is_one_statement=True
        )

    async def row(self, sql: str, **values: object) -> Row | None:
        """Run one statement and return its first row, or None."""
        return next(iter(await self.rows(sql, **values)), None)

    async def execute(self, sql: str, **values: object) -> int:
        """Run one statement and return the number of rows that it changed."""

        async def work(connection: AsyncConnection) -> int:
            return (await connection.exec_driver_sql(sql, values)).rowcount

        return await self.transaction(work, is_one_statement=True)


async def query(connection: AsyncConnection, sql: str, **values: object) -> Sequence[Row]:
    """Run one statement in a transaction and return its rows."""
    return [dict(row) for row in (await connection.exec_driver_sql(sql, values)).mappings()]


def to_json(fields: Mapping[str, Any]) -> str:
    """Return JSON for a column: what ``jsonb`` cannot hold becomes U+FFFD in a server's text, else null."""
    return json.dumps({name: _storable(value) for name, value in fields.items()})


def storable(text: str) -> str:
    """Return a text without the characters that PostgreSQL cannot hold: NUL, and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _storable(value: object) -> object:
    """Return a value of JSON without NUL characters, lone surrogates, and numbers that are none."""
    match value:
        case str():
            return storable(value)
        case Mapping():
            return {name: _storable(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_storable(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def is_lost(error: DBAPIError | OSError) -> bool:
    """Whether the connection broke or the server was starting or stopping: the same may succeed later."""
    if isinstance(error, OSError) or error.connection_invalidated:
        return True
    if isinstance(error, DataError | ProgrammingError):
        return False  # psycopg itself refuses a value, without a state
    state = getattr(error.orig, "sqlstate", None)
    # Class 08 is connections, 57P a shutdown or start, 40 a conflict with another transaction.
    return state is None or state.startswith(("08", "57P", "40"))


def in_words(error: BaseException) -> str:
    """Return the first line of a library's error, without its full stop."""
    text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _no_dsn() -> ConfigurationError:
    return ConfigurationError(
        "The DSN is no address of PostgreSQL.", advice="Write postgresql://user@host:5432/database."
    )
