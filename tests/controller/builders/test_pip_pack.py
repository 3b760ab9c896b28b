"""The pip build pack's Dockerfile: layers in the order that makes a changed content cheap."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebinder.builders.pip_pack import PipBuildPack, UnsupportedPack


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(labels: dict[str, str] | None = None) -> str:
    pack = PipBuildPack(base_image="base:1")
    assert pack.detect()
    pack.labels.update(labels or {})
    return pack.render({"NB_USER": "jovyan", "NB_UID": "1000"})


def position(dockerfile: str, *parts: str) -> list[int]:
    return [dockerfile.index(part) for part in parts]


def test_requirements_come_before_the_content_and_the_revision_last(checkout: Path) -> None:
    (checkout / "requirements.txt").write_text("numpy\n")
    (checkout / "postBuild").write_text("#!/bin/sh\n")
    dockerfile = render({"repo2docker.ref": "a" * 40})
    places = position(
        dockerfile, "FROM base:1", "pip install --no-cache-dir", "src/ ${REPO_DIR}/", "./postBuild", "a" * 40
    )
    assert places == sorted(places)
    assert dockerfile.index("USER ${NB_UID}") < dockerfile.index("pip install --no-cache-dir --disable")


@pytest.mark.parametrize("line", ["-e .", "./package", "-r more.txt", "file:///x"])
def test_requirements_that_need_the_content_come_after_it(checkout: Path, line: str) -> None:
    (checkout / "requirements.txt").write_text(line + "\n")
    places = position(render(), "src/ ${REPO_DIR}/", "-r requirements.txt")
    assert places == sorted(places)


def test_files_are_found_in_the_binder_folder(checkout: Path) -> None:
    (checkout / "requirements.txt").write_text("not-this\n")
    (checkout / "binder").mkdir()
    for name in ("requirements.txt", "postBuild", "start", "apt.txt"):
        (checkout / "binder" / name).write_text("tree\n")
    dockerfile = render()
    assert '"src/binder/requirements.txt"' in dockerfile
    assert "./binder/postBuild" in dockerfile
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in dockerfile
    assert "install --yes --no-install-recommends tree" in dockerfile


def test_a_repository_with_nothing_is_a_plain_jupyter(checkout: Path) -> None:
    assert "pip install --no-cache-dir --disable" not in render()


@pytest.mark.parametrize(
    ("file", "needs"),
    [("environment.yml", "conda"), ("install.R", "R"), ("Project.toml", "Julia"), ("default.nix", "Nix")],
)
def test_what_needs_another_pack_is_refused_with_what_to_do(checkout: Path, file: str, needs: str) -> None:
    (checkout / file).touch()
    with pytest.raises(UnsupportedPack, match=rf"{file} needs {needs}.*requirements\.txt"):
        render()


def test_a_label_cannot_break_out(checkout: Path) -> None:
    dockerfile = render({"repo2docker.repo": 'http://x/"\nRUN id $HOME\\'})
    assert 'repo2docker.repo="http://x/\\" RUN id \\$HOME\\\\"' in dockerfile
    assert "\nRUN id" not in dockerfile
