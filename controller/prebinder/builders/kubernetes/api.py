"""The cluster's API as the builder needs it: Jobs, pods, events and logs of one namespace.

The `kubernetes` package gives addresses, certificates, tokens and their renewal; answers stay plain JSON, because its
models would multiply the memory of a thousand objects. Guarantees:
- Every call has a time limit; streams end when nothing comes for theirs.
- Whatever the network or the API server does comes out as `ApiAway` (try again) or `ApiRefused` (trying the same again
  gets the same answer).
- No message shows a token.

Source: Kubernetes API concepts (list, watch, bookmarks, 410), and the API reference of batch/v1 and core/v1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from prebinder.model.failure import EngineError

if TYPE_CHECKING:
    import aiohttp
    from kubernetes.aio.client import ApiClient

Object = dict[str, Any]

JOBS = "apis/batch/v1", "jobs"
PODS = "api/v1", "pods"
EVENTS = "api/v1", "events"

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CALL_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
_PAGE = 100
_CHUNK = 64 * 1024
_MESSAGE_LIMIT = 500


class ApiAway(EngineError):
    """The API server cannot be reached, is overloaded, or broke off: try again."""


class ApiRefused(EngineError):
    """The API server answered, and the answer is no. `status` is HTTP's, `reason` the API's word for it."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Expired(ApiRefused):
    """A watch began at a resource version that is too old: list again (410 Gone)."""


class Api:
    """One namespace of one cluster. Get it from `connect`; close it."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace
        self.calls = 0
        """Requests so far, streams included."""

    @classmethod
    async def connect(cls, namespace: str | None = None) -> Api:
        """As the pod's service account; else as `KUBECONFIG` or `~/.kube/config` says. Sends nothing yet.

        `namespace` is the pod's own, or the kubeconfig context's, when None. Raises EngineError.
        """
        # Here and not above: 50 MB of memory that only builds on Kubernetes need.
        import yaml  # type: ignore[import-untyped]  # no types
        from kubernetes.aio import client, config

        configuration = client.Configuration()
        configuration.connection_pool_maxsize = 0  # each followed log holds a connection
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and (_ACCOUNT / "token").exists():
                config.load_incluster_config(client_configuration=configuration)
                own = (_ACCOUNT / "namespace").read_text().strip()
            else:
                file = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")
                loader = await config.load_kube_config(
                    config_file=file, client_configuration=configuration, persist_config=False
                )
                own = loader.current_context["context"].get("namespace") or "default"
        except (config.ConfigException, yaml.YAMLError, OSError, KeyError) as error:
            raise EngineError(
                f"There is no way to a Kubernetes cluster: {' '.join(str(error).split())[:_MESSAGE_LIMIT]}. "
                "Run the controller in a pod with a service account, or set KUBECONFIG."
            ) from None
        return cls(client.ApiClient(configuration), namespace or own)

    async def aclose(self) -> None:
        await self._client.close()

    async def create_job(self, manifest: Object) -> Object:
        """Raises ApiRefused: 409 AlreadyExists, 403 Forbidden (also a used up quota), 422 Invalid, …"""
        return await self._json("POST", self._path(JOBS), body=manifest)

    async def job(self, name: str) -> Object | None:
        """The Job as it is now; None when there is none."""
        try:
            return await self._json("GET", self._path(JOBS, name))
        except ApiRefused as error:
            if error.status == 404:
                return None
            raise

    async def delete_job(self, name: str, uid: str | None = None) -> None:
        """Delete a Job and its pods; exactly the one with `uid` when given. Success when it is not there."""
        body: Object = {"propagationPolicy": "Background", "gracePeriodSeconds": 0}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._json("DELETE", self._path(JOBS, name), body=body)
        except ApiRefused as error:
            if error.status not in (404, 409):  # gone, or another by that name
                raise

    async def all(self, kind: tuple[str, str], selector: str) -> tuple[list[Object], str]:
        """All objects with these labels, and the resource version from which to watch."""
        items: list[Object] = []
        version = ""
        async for some, at in self.pages(kind, selector):
            items, version = items + some, at
        return items, version

    async def pages(self, kind: tuple[str, str], selector: str) -> AsyncGenerator[tuple[list[Object], str], None]:
        """All objects with these labels, some at a time: a thousand at once would be 50 MB. With each page, the
        resource version from which to watch."""
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        while True:
            page = await self._json("GET", self._path(kind), query)
            metadata = page["metadata"]
            yield page.get("items") or [], metadata["resourceVersion"]
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def watch(
        self, kind: tuple[str, str], selector: str, version: str, *, seconds: int, idle: float
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """What changes after `version`: type (ADDED, MODIFIED, DELETED, BOOKMARK) and object. The server ends it after
        `seconds`. Raises Expired when the version is too old, ApiAway when it breaks off or says nothing for `idle`
        seconds (a bookmark comes each minute)."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        async with self._stream(self._path(kind), query, idle=idle) as content:
            async for line in _lines(content):
                try:
                    event = json.loads(line)
                    type_, object_ = event["type"], event["object"]
                except (ValueError, KeyError):
                    raise ApiAway("The API server's watch broke off in the middle of a line.") from None
                if type_ == "ERROR":
                    raise _refused(object_.get("code", 500), object_)
                yield type_, object_

    async def warnings_about(self, kind: str, name: str) -> list[str]:
        """What the cluster's events of type Warning say about an object, oldest first."""
        query = {"fieldSelector": f"involvedObject.kind={kind},involvedObject.name={name},type=Warning", "limit": "50"}
        found = (await self._json("GET", self._path(EVENTS), query)).get("items") or []
        found.sort(key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
        return [str(e.get("message", "")) for e in found]

    async def log(self, pod: str, container: str, idle: float) -> AsyncGenerator[bytes, None]:
        """A container's log from its first byte, and on until it ends. Ends too when nothing comes for `idle` seconds.

        Raises ApiRefused: 404 when the pod is gone, 400 when the container has not begun.
        """
        query = {"container": container, "follow": "true"}
        async with self._stream(self._path(PODS, pod, "log"), query, idle=idle) as content:
            while chunk := await content.read(_CHUNK):
                yield chunk

    async def reachable(self) -> None:
        """Raises ApiAway or ApiRefused."""
        await self._json("GET", "version")

    async def ask(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        """Any other question of the API; `path` is whole, without its first slash. Raises ApiAway or ApiRefused."""
        return await self._json(method, path, query, body)

    def _path(self, kind: tuple[str, str], *names: str) -> str:
        version, plural = kind
        return "/".join([version, "namespaces", self.namespace, plural, *(quote(name, safe="") for name in names)])

    async def _json(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_CALL_SECONDS, connect=_CONNECT_SECONDS)
        async with self._asked(method, path, query, timeout, body) as answer:
            try:
                found: Object = await answer.json(content_type=None)
            except ValueError:
                raise ApiAway(f"The API server's answer to {method} {path} is not JSON.") from None
            return found

    @contextlib.asynccontextmanager
    async def _stream(self, path: str, query: Mapping[str, str], idle: float) -> AsyncIterator[aiohttp.StreamReader]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=idle)
        async with self._asked("GET", path, query, timeout, None) as answer:
            yield answer.content

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
        body: Object | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, while this is open; every trouble with it as ours."""
        import aiohttp

        self.calls += 1
        resource = f"/{path}?{urlencode(query)}" if query else f"/{path}"
        try:
            # The server's answer to a watch or log begins with its first event: only then is there a response.
            _, url, headers, sent, _ = await self._client.param_serialize(
                method, resource, header_params={"Accept": "application/json"}, body=body, auth_settings=["BearerToken"]
            )
            answer = await self._client.call_api(method, url, headers, sent, _request_timeout=timeout)
            response: aiohttp.ClientResponse = answer.response
            async with response:
                if response.status >= 400:
                    raise await _problem(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise ApiAway(f"The cluster's API server does not answer ({_said(error)}).") from None
        except OSError as error:  # a token or certificate file that cannot be read
            raise ApiAway(f"The cluster's API cannot be asked ({error.strerror}).") from None


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however long: a pod may be larger than aiohttp's buffer."""
    rest: list[bytes] = []
    while chunk := await content.read(_CHUNK):
        *whole, last = chunk.split(b"\n")
        for line in whole:
            rest.append(line)
            if joined := b"".join(rest).strip():
                yield joined
            rest = []
        rest.append(last)
    if b"".join(rest).strip():
        raise ApiAway("The API server's watch broke off in the middle of a line.")


async def _problem(response: aiohttp.ClientResponse) -> EngineError:
    try:
        status = json.loads(await response.content.read(_CHUNK))
    except ValueError:
        status = {}
    return _refused(response.status, status if isinstance(status, dict) else {})


def _refused(code: int, status: Object) -> EngineError:
    reason = str(status.get("reason") or "")
    message = " ".join(str(status.get("message") or f"HTTP status {code}").split())[:_MESSAGE_LIMIT]
    if code == 410:
        return Expired(message, code, reason)
    if code == 429 or code >= 500:
        return ApiAway(f"The cluster's API server is not able to answer now: {message}")
    if code == 401:
        message = "The cluster's API server does not accept our credentials."
    return ApiRefused(message, code, reason)


def _said(error: BaseException) -> str:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "time is over"
    return str(error)[:200] or type(error).__name__
