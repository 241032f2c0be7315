"""The command doctor: against the sandbox, against closed ports, without a key."""

from __future__ import annotations

import asyncio
import json
import os
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from flux_async.cli.doctor import (
    Level,
    check_callback,
    check_certificates,
    check_clock,
    check_disk,
)
from flux_async.clock import SystemClock


def checks(ended: Any) -> dict[str, str]:
    reported = json.loads(ended.stdout)
    assert reported["ok"] is (ended.code == 0)
    return {found["check"]: found["level"] for found in reported["checks"]}


def test_all_is_well_with_the_sandbox(cli: Any) -> None:
    """Every line is ok, nothing was submitted, no folder was made."""
    before = cli.ledger()["submits"]
    ended = cli.run("doctor", "--callback-url", cli.base_url, "--json")
    assert ended.code == 0, ended.stdout
    assert list(checks(ended)) == [
        *("versions", "key", "balance", "api kontext", "api jobs", "clock", "uploads", "callback"),
        *("certificates", "disk"),
    ]
    assert set(checks(ended).values()) == {"ok"}
    assert cli.ledger()["submits"] == before
    assert list(cli.folder.iterdir()) == []
    plain = cli.run("doctor")
    assert plain.code == 0
    assert [line.split()[0] for line in plain.stdout.splitlines()] == ["ok"] * 9


def test_without_a_key_doctor_reports_the_other_checks(make_cli: Any, sandbox_url: str) -> None:
    """No key is a failure that names the variable; the other lines are there."""
    ended = make_cli(sandbox_url, key=None).run("doctor", "--json")
    assert ended.code == 1
    found = checks(ended)
    assert found == {"versions": "ok", "key": "fail", "clock": "ok", "certificates": "ok", "disk": "ok"}
    assert "KIE_API_KEY" in ended.stdout


def test_a_wrong_key_fails_and_an_empty_balance_warns(
    make_cli: Any, sandbox_url: str, start_sandbox: Any
) -> None:
    """The key fails for the API and for uploads."""
    ended = make_cli(sandbox_url, key="wrong").run("doctor", "--json")
    assert (ended.code, checks(ended)["key"], checks(ended)["uploads"]) == (1, "fail", "fail")
    poor = make_cli(start_sandbox("--credits", "4", "--images", "none").url).run("doctor", "--json")
    assert (poor.code, checks(poor)["balance"]) == (0, "warn")


def test_unreachable_hosts_fail_with_advice(offline: Any, make_cli: Any) -> None:
    """The API, the upload host, the receiver: each fails; a bad setting is named."""
    ended = offline.run("doctor", "--callback-url", "http://127.0.0.1:9/", "-o", "/proc/none")
    assert ended.code == 1
    failed = [line.split()[1] for line in ended.stdout.splitlines() if line.startswith("fail")]
    assert set(failed) >= {"api", "uploads", "callback"}
    assert "KIE_BASE_URL" in ended.stdout
    bad = make_cli("ftp://example.com").run("doctor")
    assert (bad.code, "KIE_BASE_URL" in bad.stdout) == (1, True)


class _Ahead(SystemClock):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def wall(self) -> float:
        """Return a time that is not the time."""
        return super().wall() + self._seconds


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, Level.OK), (-5, Level.OK), (60, Level.WARN), (-400, Level.FAIL)]
)
async def test_a_wrong_clock_is_reported(raw_server: Any, make: Any, seconds: float, level: Level) -> None:
    """By how much, and from 300 s on it is a failure: signatures would be refused."""

    async def behave(_: str, __: dict[str, str], ___: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(make.http(b"", headers=f"date: {formatdate(usegmt=True)}\r\n"))
        return True

    async with raw_server(behave) as server:
        found = await check_clock(server.url, _Ahead(seconds))
        assert "authorization" not in server.requests[0][1]
    assert (found.check, found.level) == ("clock", level)
    assert level is Level.OK or ("ahead of" if seconds > 0 else "behind") in found.message


async def test_a_server_without_a_time(raw_server: Any, make: Any) -> None:
    """No Date header: a warning, not a failure."""

    async def behave(_: str, __: dict[str, str], ___: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(make.http(b""))
        return True

    async with raw_server(behave) as server:
        assert (await check_clock(server.url)).level is Level.WARN
        found = await check_callback(server.url, api_is_local=False)
        assert (found.level, "private" in found.advice) == (Level.WARN, True)
    assert (await check_callback("nonsense", api_is_local=True)).level is Level.FAIL


def test_disk_and_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is a file, and authorities that are not there, are failures."""
    assert check_disk(tmp_path / "not" / "yet").level is Level.OK
    file = tmp_path / "file"
    file.touch()
    assert check_disk(file / "below").level is Level.FAIL
    assert check_certificates().level is Level.OK
    (tmp_path / "loop").symlink_to("loop")
    assert check_disk(tmp_path / "loop" / "below").level is Level.FAIL
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    assert check_certificates().level is Level.FAIL
    monkeypatch.delenv("SSL_CERT_FILE")
    authorities = tmp_path / "authorities"
    monkeypatch.setenv("SSL_CERT_DIR", str(authorities))
    assert check_certificates().level is Level.FAIL
    authorities.mkdir()
    assert "known in" in check_certificates().message
    (authorities / "0123abcd.0").touch()
    assert check_certificates().message.startswith("1 authorities in")


def test_a_folder_without_permission_is_reported(tmp_path: Path) -> None:
    """A line like the others, not a crash."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    for folder in (*tmp_path.parents[:2], tmp_path):
        folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:  # who may look anywhere
        os.setresuid(65_534, 65_534, 0)
    try:
        assert check_disk(locked / "a" / "b").level is Level.FAIL
    finally:
        if root:
            os.setresuid(0, 0, 0)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9"])
async def test_a_proxy_that_cannot_be_used_is_a_finding(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """Whatever the library raises about it."""
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    found = await check_clock("http://192.0.2.1")
    assert (found.check, found.level) == ("api", Level.FAIL)
    assert "proxy" in found.message.lower()
    called = await check_callback("http://192.0.2.1/hook", api_is_local=False)
    assert (called.level, "roxy" in called.message) == (Level.FAIL, True)
