"""Requests of tests over plain HTTP: two minutes each, and no certificates to read, which takes 30 ms."""

from __future__ import annotations

import ssl
from functools import partial

import httpx

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SECONDS = 120

get = partial(httpx.get, timeout=SECONDS, verify=PLAIN)
post = partial(httpx.post, timeout=SECONDS, verify=PLAIN)
