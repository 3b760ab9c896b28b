"""`/api/repoproviders`: the providers and how forms label their fields, in BinderHub's shape (`display_config`)."""

from __future__ import annotations

from typing import Any

from prebinder.model.spec import Provider

REPO_PROVIDERS: tuple[dict[str, Any], ...] = (
    {
        "displayName": "GitHub",
        "id": Provider.GITHUB.value,
        "spec": {"validateRegex": r"[^/]+/[^/]+/.+"},
        "detect": {"regex": r"^(https?://github\.com/)?(?<repo>[^/:]+/[^/:]+?)(\.git)?/?$"},
        "repo": {
            "label": "GitHub repository name or URL",
            "placeholder": "example: binder-examples/requirements",
        },
        "ref": {"enabled": True, "default": "HEAD"},
    },
    {
        "displayName": "Git repository",
        "id": Provider.GIT.value,
        "spec": {"validateRegex": r"[^/]+/.+"},
        "detect": {"regex": r"^(?<repo>(https?|ssh|git)://.+|[\w-]+@[\w.-]+:.+)$"},
        "repo": {
            "label": "URL of any Git repository",
            "placeholder": "example: https://git.example.org/course.git",
            "urlEncode": True,
        },
        "ref": {"enabled": True, "default": "HEAD"},
    },
    {
        "displayName": "GitLab",
        "id": Provider.GITLAB.value,
        "spec": {"validateRegex": r"[^/]+/.+"},
        "detect": {"regex": r"^(https?://gitlab\.com/)?(?<repo>[^:]+/[^:]+?)(\.git)?/?$"},
        "repo": {
            "label": "GitLab project or URL",
            "placeholder": "example: group/project",
            "urlEncode": True,
        },
        "ref": {"enabled": True, "default": "HEAD"},
    },
    {
        "displayName": "Gist",
        "id": Provider.GIST.value,
        "spec": {"validateRegex": r"[^/]+/[^/]+(/[^/]+)?"},
        "detect": {"regex": r"^(https?://gist\.github\.com/)?(?<repo>[^/:]+/[0-9a-f]+)/?$"},
        "repo": {"label": "Gist (user/id) or URL", "placeholder": "example: user/0123456789abcdef"},
        "ref": {"enabled": True, "default": "HEAD"},
    },
)


def repo_providers(available: frozenset[Provider]) -> list[dict[str, Any]]:
    """Those that this installation has a Git host for."""
    return [entry for entry in REPO_PROVIDERS if Provider(entry["id"]) in available]
