"""A stand-in for GitHub: the few answers of its REST API that Prebinder reads, and its Git over HTTP.

The real one cannot be part of a test that runs anywhere. Paths, status codes, messages and fields are those of GitHub's
published description of its REST API (github/rest-api-description, version 2022-11-28): get a commit (also with
`application/vnd.github.sha`), get a Git commit, compare two commits (oldest first, in pages), create a commit status,
and the rate limit's headers. Repositories are real ones, so commits and refs are Git's own answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from prebinder.onemachine.git_http import GitHttp
from tests.support.git_server import git


@dataclass
class StandInGitHub:
    """`folder` holds the bare repositories of the one account `octo`."""

    folder: Path
    token: str | None = None
    """When set, everything is hidden from who does not send it."""
    limited: dict[str, str] | None = None
    """When set, the REST API answers "rate limit exceeded" with these headers."""
    broken: Response | None = None
    """When set, the REST API answers this."""
    asked: list[str] = field(default_factory=list)
    """`METHOD path?query` of every question to the REST API."""
    statuses: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        repository = "/repos/{owner}/{name}"
        return Starlette(
            routes=[
                Route(f"{repository}/commits/{{ref:path}}", self._commit),
                Route(f"{repository}/git/commits/{{sha}}", self._git_commit),
                Route(f"{repository}/compare/{{range}}", self._compare),
                Route(f"{repository}/statuses/{{sha}}", self._status, methods=["POST"]),
                Mount("/octo", GitHttp(self.folder)),
            ]
        )

    def _refusal(self, request: Request) -> Response | None:
        self.asked.append(f"{request.method} {request.url.path}?{request.url.query}".removesuffix("?"))
        if self.broken is not None:
            return self.broken
        if self.limited is not None:
            return _error(403, "API rate limit exceeded for 192.0.2.1.", self.limited)
        authorization = request.headers.get("authorization", "").lower()
        known = (f"token {self.token}", f"bearer {self.token}")
        if self.token is not None and authorization and authorization not in known:
            return _error(401, "Bad credentials")
        if self.token is not None and not authorization:
            return _error(404, "Not Found")
        if request.path_params["owner"] != "octo" or not self._path(request).is_dir():
            return _error(404, "Not Found")
        return None

    def _path(self, request: Request) -> Path:
        return self.folder / f"{request.path_params['name']}.git"

    async def _commit(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        ref = request.path_params["ref"]
        try:
            sha = git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", cwd=self._path(request))
        except AssertionError:
            return _error(422, f"No commit found for SHA: {ref}")
        if request.headers["accept"] == "application/vnd.github.sha":
            return PlainTextResponse(sha, media_type="application/vnd.github.sha")
        return JSONResponse(self._item(request, sha))

    async def _git_commit(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        sha = request.path_params["sha"]
        try:
            return JSONResponse({"sha": sha, "message": self._message(request, sha)})
        except AssertionError:
            return _error(404, "Not Found")

    async def _compare(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        base, head = request.path_params["range"].split("...")
        page, size = int(request.query_params.get("page", 1)), int(request.query_params.get("per_page", 250))
        try:
            listed = git("rev-list", "--reverse", "--topo-order", f"{base}..{head}", cwd=self._path(request)).split()
        except AssertionError:
            return _error(404, "Not Found")
        commits = [self._item(request, sha) for sha in listed[(page - 1) * size : page * size]]
        return JSONResponse({"status": "ahead", "total_commits": len(listed), "commits": commits, "files": []})

    async def _status(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        sent = await request.json()
        if not re.fullmatch(r"error|failure|pending|success", sent["state"]) or len(sent.get("description", "")) > 140:
            return _error(422, "Validation Failed")
        self.statuses.append({"sha": request.path_params["sha"], **sent})
        return JSONResponse({"id": 1, **sent}, 201)

    def _item(self, request: Request, sha: str) -> dict[str, Any]:
        return {"sha": sha, "commit": {"message": self._message(request, sha)}}

    def _message(self, request: Request, sha: str) -> str:
        return git("log", "-1", "--format=%B", sha, cwd=self._path(request))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"message": message, "documentation_url": "https://docs.github.com/rest"}, status, headers)
