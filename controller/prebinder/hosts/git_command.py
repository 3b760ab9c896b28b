"""Runs Git against servers and repositories that nobody vouches for.

Guarantees:
- No prompt, no person's or system's Git settings, no hooks, no remote helpers: only the transports of the URL's own
  scheme (http may become https by a redirect of the first request, nothing else).
- Bounded in time, output, memory and disk; when a bound is met, or the caller is cancelled, the whole process group
  ends.
- Errors are typed, say in one line what happened, and hold no credentials.

What the operator's environment says of certificates, proxies, the SSH agent and `~/.netrc` is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from prebinder.model.failure import HostUnavailable, RepositoryNotFound, SpecError
from prebinder.model.spec import git_url
from prebinder.processes import end

MAX_OUTPUT = 32 * 2**20
_ERROR_LIMIT = 8 * 1024
_CHUNK = 64 * 1024
_MEMORY_KIB = 1024 * 1024
_FILE_BLOCKS = 2 * 2**20
"""Largest file that Git may write, in blocks of 512 bytes (POSIX `ulimit -f`)."""

_KEPT = (
    *("PATH", "HOME", "TMPDIR", "SSH_AUTH_SOCK"),
    *("GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
_TRANSPORTS = {"http": "http:https", "https": "http:https", "ssh": "ssh", "git": "git"}
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")

# What Git (2.30 to 2.53, LC_ALL=C) and the usual servers say when a repository is not there, or not there for us.
_NOT_FOUND = re.compile(
    r"repository '.*' not found|repository not found|not valid: is this a git repository|"
    r"does not appear to be a git repository|returned error: (?:401|403|404|410)|authentication failed|"
    r"could not read (?:username|password)|permission denied|access denied|no such repository|"
    r"project you were looking for could not be found|not exported|invalid credentials",
    re.IGNORECASE,
)


class GitFailed(Exception):
    """Git ended with an error that names neither a missing repository nor an unreachable server."""


def checked_url(url: str) -> str:
    """The URL, when Git may be given it; else RepositoryNotFound. The rules are those of `git_url`."""
    try:
        return git_url(url).name
    except SpecError as error:
        raise RepositoryNotFound(str(error)) from None


async def run_git(
    arguments: Sequence[str],
    *,
    url: str,
    timeout: float,
    folder: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> bytes:
    """Run `git <arguments>` and return its output.

    `url` is the server that it speaks to: it chooses the transport and stands in messages. `settings` is Git
    configuration for this one command; it may hold credentials, for it travels by the environment.

    Raises RepositoryNotFound, HostUnavailable or GitFailed.
    """
    # The limits hold from the first instruction on, also for the helpers that Git starts.
    command = ["/bin/sh", "-c", f'ulimit -d {_MEMORY_KIB} && ulimit -f {_FILE_BLOCKS} && exec git "$@"', "git"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        cwd=folder,
        env=_environment(url, settings or {}),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(_read(process, url))
                complaining = tasks.create_task(_read_errors(process))
            status = await process.wait()
    except TimeoutError:
        raise HostUnavailable(f"{shown(url)} did not answer within {timeout:g} s.") from None
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await end(process)
    if status:
        raise failure(url, status, complaining.result())
    return reading.result()


def failure(url: str, status: int, stderr: str) -> Exception:
    """What an exit status and the text on standard error mean."""
    where = shown(url)
    if status < 0:
        return HostUnavailable(f"{where} sends more than Prebinder reads from one repository.")
    if "Host key verification failed" in stderr:
        return HostUnavailable(f"The SSH key of {where} is not known here: add it to ~/.ssh/known_hosts.")
    if _NOT_FOUND.search(stderr):
        return RepositoryNotFound(f"There is no repository at {where}, or it is not public.")
    if re.search(r"transport '.*' not allowed", stderr):
        return RepositoryNotFound(f"{where} leads to a kind of address that Prebinder does not fetch from.")
    if re.search(r"out of memory|File size limit exceeded|memory exhausted|\boom\b", stderr, re.IGNORECASE):
        return HostUnavailable(f"{where} sends more than Prebinder reads from one repository.")
    text = _said(stderr)
    if re.search(
        r"unable to access|could not resolve|unable to connect|unable to look up|failed to connect|"
        r"connection (?:refused|reset|timed out|closed)|could not read from remote|early eof|hung up|"
        r"unexpected disconnect|rpc failed|protocol error|redirect|bad (?:line|pack)|expected|invalid",
        stderr,
        re.IGNORECASE,
    ):
        return HostUnavailable(f"{where} did not answer as a Git server: {text}")
    return GitFailed(f"{where}: {text}")


def _said(stderr: str) -> str:
    """The line of standard error that says why, without what the message says already."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = (line for line in lines if line.startswith(("fatal:", "error:", "ssh:", "kex_")))
    line = _USERINFO.sub("", next((t for t in told if "Could not read from remote" not in t), "no reason given"))
    return one_line(re.sub(r"^(?:(?:fatal|error): )*(?:unable to access '[^']*': )?", "", line)).rstrip(".") + "."


def one_line(text: str, limit: int = 200) -> str:
    """Untrusted text as one printable line of at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shown(url: str) -> str:
    """The URL without a user's name, for messages."""
    return one_line(_USERINFO.sub("", url))


def _environment(url: str, settings: Mapping[str, str]) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    settings = {
        "http.followRedirects": "initial",
        "http.lowSpeedLimit": "1",
        "http.lowSpeedTime": "60",
        "protocol.version": "2",
        "credential.helper": "",
        "core.hooksPath": os.devnull,
        "gc.auto": "0",
        "maintenance.auto": "false",
        "submodule.recurse": "false",
        **settings,
    }
    environment |= {
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": str(len(settings)),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "SSH_ASKPASS_REQUIRE": "never",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes -oConnectTimeout=10",
        "GIT_SSH_VARIANT": "ssh",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_ALLOW_PROTOCOL": _TRANSPORTS.get(urlsplit(url).scheme, "none"),
    }
    for number, (key, value) in enumerate(settings.items()):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    return environment


async def _read(process: Process, url: str) -> bytes:
    assert process.stdout is not None
    output = bytearray()
    while chunk := await process.stdout.read(_CHUNK):
        output += chunk
        if len(output) > MAX_OUTPUT:
            raise HostUnavailable(f"{shown(url)} lists more than Prebinder reads ({MAX_OUTPUT // 2**20} MiB).")
    return bytes(output)


async def _read_errors(process: Process) -> str:
    """The end of standard error: the reason is said last."""
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(_CHUNK):
        kept = (kept + chunk)[-_ERROR_LIMIT:]
    return kept.decode("utf-8", "replace")
