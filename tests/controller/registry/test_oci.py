"""The OCI registry, against a real one: open, with passwords, with a token server; and against one that misbehaves."""

from __future__ import annotations

import base64
import datetime
import functools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prebinder.config.models import RegistryConfig
from prebinder.model.failure import RegistryError
from prebinder.model.images import ImageName
from prebinder.registry import OCIRegistry
from prebinder.registry.oci import parse_challenge
from tests.support.git_server import serve
from tests.support.registry import DOCKER_MANIFEST, HTPASSWD, OCI_INDEX, OCI_MANIFEST, Registry, running_registry

BASIC = {"Authorization": "Basic " + base64.b64encode(b"ada:secret").decode()}


def credentials(folder: Path, host: str, user: str = "ada", password: str = "secret") -> Path:
    file = folder / "config.json"
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    file.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return file


def config(host: str, **more: Any) -> RegistryConfig:
    return RegistryConfig(prefix=f"{host}/binder/", insecure=True, timeout=5, **more)


@pytest.fixture
async def store(registry: Registry) -> AsyncIterator[OCIRegistry]:
    store = OCIRegistry(config(registry.host))
    yield store
    await store.aclose()


def image(host: str, name: str = "course", tag: str = "a" * 40) -> ImageName:
    return ImageName(f"{host}/binder/{name}", tag)


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX])
async def test_an_image_is_found_whichever_type_its_manifest_has(
    store: OCIRegistry, registry: Registry, kind: str
) -> None:
    name = image(registry.host)
    assert await store.digest(name) is None
    assert await store.launchable(name) is None
    digest = registry.put("binder/course", name.tag, kind)
    assert await store.digest(name) == digest
    assert await store.launchable(name) == f"{name.name}@{digest}"


async def test_delete_takes_the_image_away_and_says_whether_there_was_one(
    store: OCIRegistry, registry: Registry
) -> None:
    name = image(registry.host)
    registry.put("binder/course", name.tag)
    assert await store.delete(name)
    assert await store.digest(name) is None
    assert not await store.delete(name)


async def test_an_image_of_another_registry_is_an_error(store: OCIRegistry) -> None:
    with pytest.raises(RegistryError, match=r"is not in the registry"):
        await store.digest(image("elsewhere.example.org"))


async def test_health_of_a_registry_that_is_there_and_of_one_that_is_not(store: OCIRegistry) -> None:
    await store.health()
    away = OCIRegistry(config("127.0.0.1:1"))
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1 cannot be reached"):
        await away.health()
    await away.aclose()


class TestPasswords:
    @pytest.fixture
    def closed(self, tmp_path: Path) -> Iterator[Registry]:
        file = tmp_path / "htpasswd"
        file.write_text(HTPASSWD)
        auth = {"htpasswd": {"realm": "test", "path": str(file)}}
        with running_registry(tmp_path / "closed", auth, BASIC) as registry:
            yield registry

    async def test_the_right_password_opens(self, closed: Registry, tmp_path: Path) -> None:
        digest = closed.put("binder/course", "a" * 40)
        store = OCIRegistry(config(closed.host, credentials=credentials(tmp_path, closed.host)))
        assert await store.digest(image(closed.host)) == digest
        await store.health()
        assert await store.delete(image(closed.host))
        await store.aclose()

    @pytest.mark.parametrize("password", ["wrong", None])
    async def test_a_wrong_one_or_none_is_an_error_that_does_not_show_it(
        self, closed: Registry, tmp_path: Path, password: str | None
    ) -> None:
        file = credentials(tmp_path, closed.host, password=password) if password else None
        store = OCIRegistry(config(closed.host, credentials=file))
        with pytest.raises(RegistryError, match=r"refuses us .*registry\.credentials") as caught:
            await store.digest(image(closed.host))
        assert "wrong" not in str(caught.value)
        await store.aclose()


@dataclass
class TokenServer:
    """A token server by the distribution project's token specification, and what it was asked."""

    issuer = "prebinder-test"
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    asked: list[dict[str, str]] = field(default_factory=list)

    @functools.cached_property
    def certificate(self) -> bytes:
        """Self-signed, DER; one for all tokens: the registry trusts these very bytes."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "token server")])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )

    async def answer(self, request: Request) -> Response:
        self.asked.append(dict(request.query_params))
        if request.headers.get("authorization") != BASIC["Authorization"]:
            return JSONResponse({"details": "no"}, 401)
        kind, _, rest = request.query_params.get("scope", "").partition(":")
        name, _, actions = rest.rpartition(":")
        return JSONResponse({"token": self.token(kind, name, actions.split(",")), "expires_in": 300})

    def token(self, kind: str, name: str, actions: list[str]) -> str:
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        access = [{"type": kind, "name": name, "actions": actions}] if kind else []
        claims = {"iss": self.issuer, "aud": "registry", "sub": "ada", "nbf": now - 10, "iat": now, "exp": now + 300}
        chain = [base64.b64encode(self.certificate).decode()]
        return jwt.encode({**claims, "access": access}, self.key, "RS256", headers={"x5c": chain})


class TestTokens:
    @pytest.fixture
    def server(self) -> TokenServer:
        return TokenServer()

    @pytest.fixture
    def guarded(self, tmp_path: Path, server: TokenServer) -> Iterator[Registry]:
        bundle = tmp_path / "token.pem"
        pem = base64.encodebytes(server.certificate).decode()
        bundle.write_text(f"-----BEGIN CERTIFICATE-----\n{pem}-----END CERTIFICATE-----\n")
        with serve(Starlette(routes=[Route("/token", server.answer)])) as url:
            auth = {
                "token": {
                    "realm": f"{url}/token",
                    "service": "registry",
                    "issuer": server.issuer,
                    "rootcertbundle": str(bundle),
                }
            }
            bearer = {"Authorization": f"Bearer {server.token('repository', 'binder/course', ['pull', 'push'])}"}
            with running_registry(tmp_path / "guarded", auth, bearer) as registry:
                yield registry

    async def test_a_token_is_fetched_for_the_repository_and_kept(
        self, guarded: Registry, server: TokenServer, tmp_path: Path
    ) -> None:
        digest = guarded.put("binder/course", "a" * 40)
        store = OCIRegistry(config(guarded.host, credentials=credentials(tmp_path, guarded.host)))
        for _ in range(3):
            assert await store.digest(image(guarded.host)) == digest
        assert server.asked == [{"service": "registry", "scope": "repository:binder/course:pull"}]
        assert await store.delete(image(guarded.host))
        assert server.asked[-1]["scope"] == "repository:binder/course:pull,push,delete"
        await store.health()
        await store.aclose()

    async def test_credentials_that_the_token_server_refuses(self, guarded: Registry, tmp_path: Path) -> None:
        file = credentials(tmp_path, guarded.host, password="wrong")
        store = OCIRegistry(config(guarded.host, credentials=file))
        with pytest.raises(RegistryError, match="refuses our credentials"):
            await store.digest(image(guarded.host))
        await store.aclose()


class TestMisbehaving:
    """What a real registry cannot be made to do."""

    @staticmethod
    async def ask(app: Starlette, **more: Any) -> str | None:
        with serve(app) as url:
            host = url.removeprefix("http://")
            store = OCIRegistry(config(host, **more))
            try:
                return await store.digest(image(host))
            finally:
                await store.aclose()

    async def test_passing_trouble_is_tried_again(self) -> None:
        answers = iter([503, 500, 200])

        async def manifest(request: Request) -> Response:
            return Response(status_code=next(answers), headers={"Docker-Content-Digest": "sha256:" + "1" * 64})

        found = await self.ask(Starlette(routes=[Route("/v2/{rest:path}", manifest)]))
        assert found == "sha256:" + "1" * 64

    async def test_lasting_trouble_is_an_error_after_three_attempts(self) -> None:
        asked = []

        async def manifest(request: Request) -> Response:
            asked.append(request.method)
            return Response(status_code=502)

        with pytest.raises(RegistryError, match="answered 502"):
            await self.ask(Starlette(routes=[Route("/v2/{rest:path}", manifest)]))
        assert len(asked) == 3

    async def test_without_a_digest_header_the_manifest_is_hashed(self) -> None:
        async def manifest(request: Request) -> Response:
            return Response(b'{"schemaVersion": 2}', media_type=OCI_MANIFEST)

        found = await self.ask(Starlette(routes=[Route("/v2/{rest:path}", manifest, methods=["GET", "HEAD"])]))
        assert found == "sha256:c5d902c53b4afcf32ad746fd9d696431650d3fbe8f7b10ca10519543fefd772c"

    async def test_a_token_server_over_plain_http_is_not_told_credentials(self, tmp_path: Path) -> None:
        store = OCIRegistry(RegistryConfig(prefix="registry.example.org/binder/"))
        with pytest.raises(RegistryError, match="not https"):
            await store._fetch_token({"realm": "http://tokens.example.org/"}, None)
        await store.aclose()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/t",service="s",scope="x:y:pull,push"',
            ("bearer", {"realm": "https://a/t", "service": "s", "scope": "x:y:pull,push"}),
        ),
        ('Basic realm="r"', ("basic", {"realm": "r"})),
        ("", ("", {})),
        ("Negotiate", ("negotiate", {})),
    ],
)
def test_challenges(header: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse_challenge(header) == expected
