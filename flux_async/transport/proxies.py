"""Which proxy of the environment stands before a host. This machine never has one."""

from __future__ import annotations

import urllib.request

from flux_async.policy.hosts import literal


def proxy_named(scheme: str, host: str) -> str | None:
    """Return the proxy that the environment names for ``scheme``; exceptions are not looked at."""
    address = literal(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    if not named:
        return None
    return named if "://" in named else f"http://{named}"


def is_bypassed(host: str) -> bool:
    """Say whether the environment has ``host`` reached without a proxy; may look the name up."""
    return bool(urllib.request.proxy_bypass(host))


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy to go through to ``host``, or None where it is gone to directly."""
    named = proxy_named(scheme, host)
    return None if named is None or is_bypassed(host) else named
