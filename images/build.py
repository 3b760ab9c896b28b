"""Builds the container images: `prebinder` (controller and launch endpoint), `builder`, and the tests' small `hub`.

    python images/build.py                                  all of them, into the local store
    python images/build.py prebinder --tag 0.1.0 --push registry.example.org/prebinder/
    python images/build.py hub --archive dist/              as docker-archives, for `ctr images import` and the like

Guarantees:
- Only locked packages go in, each checked by its hash; the last commit's time is every file's time. The same commit on
  the same base gives the same image.
- The base is an argument. Without one it is the public slim Python where its registry answers, else a Debian root made
  here from packages by mmdebstrap (cached).
- This machine's own certificate authorities are used while building and are not part of any image.

Needs buildah (or podman, which is asked the same). Standard library only, but for hatchling, which makes the wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "images"
PUBLIC_BASE = "docker.io/library/python:3.12-slim-bookworm"
_PUBLIC_REGISTRY = "https://registry-1.docker.io/v2/"
_SUITE = "bookworm"
_DEBIAN_PACKAGES = ("ca-certificates", "git", "python3", "python3-venv")
# The name of the base image in the builder (controller/prebinder/builders/kubernetes/wire.py).
_PRELOADED = "localhost/prebinder/base:latest"
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# What an image's folder needs beside its own files.
_FURTHER_FILES = {
    "base": ("controller/prebinder/onemachine/base_setup.sh",),
    "hub": (
        "controller/prebinder/onemachine/node/package.json",
        "controller/prebinder/onemachine/node/package-lock.json",
    ),
}


class BuildError(Exception):
    """One or two lines that say what failed and what to do."""


@dataclass(frozen=True)
class Tool:
    """buildah, or podman, with a storage of its own when one is named."""

    program: str
    environment: dict[str, str]

    def run(self, *arguments: str | Path, capture: bool = False) -> str:
        command = [self.program, *map(str, arguments)]
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else sys.stderr,
            text=True,
            env={**os.environ, **self.environment},
        )
        if done.returncode:
            raise BuildError(f"{' '.join(command[:4])} … ended with exit code {done.returncode}; its output is above.")
        return (done.stdout or "").strip()

    def has(self, image: str) -> bool:
        command = [self.program, "inspect", "--type", "image", image]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, check=False, capture_output=True, env=environment).returncode == 0


def main() -> int:
    names = sorted(path.parent.name for path in IMAGES.glob("*/Containerfile"))
    parser = argparse.ArgumentParser(description="Build Prebinder's container images.")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help=f"of {', '.join(names)}, or a folder with a Containerfile; all by default",
    )
    parser.add_argument("--base", help="base image; it needs Python 3.11 to 3.13, and Git or apt-get")
    parser.add_argument("--prefix", default="localhost/prebinder/", help="of the images' names (%(default)s)")
    parser.add_argument("--tag", default="dev", help="of the images (%(default)s)")
    parser.add_argument("--push", metavar="PREFIX", help="push to this registry and path")
    parser.add_argument("--insecure", action="store_true", help="the registry speaks plain HTTP")
    parser.add_argument("--archive", type=Path, metavar="FOLDER", help="write NAME.tar there, a docker-archive")
    parser.add_argument("--storage", type=Path, metavar="FOLDER", help="keep layers there instead of in the default")
    arguments = parser.parse_args()
    folders = {name: IMAGES / name for name in names}
    folders |= {Path(i).name: Path(i) for i in arguments.images if (Path(i) / "Containerfile").is_file()}
    wanted = [Path(image).name for image in arguments.images] or names
    if unknown := set(wanted) - folders.keys():
        parser.error(f"there is no image {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    try:
        tool = find_tool(arguments.storage)
        base = arguments.base or find_base(tool)
        with tempfile.TemporaryDirectory(prefix="prebinder-images-") as folder:
            wheel = make_wheel(Path(folder))
            # The builder holds the base image of what it builds.
            ordered = [*(["base"] if {"base", "builder"} & set(wanted) else []), *(n for n in wanted if n != "base")]
            for name in ordered:
                image = f"{arguments.prefix}{name}:{arguments.tag}"
                say(f"building {image} …")
                preloaded = f"{arguments.prefix}base:{arguments.tag}" if name == "builder" else None
                build(tool, folders[name], image, base, wheel, Path(folder), preloaded)
                for line in publish(tool, name, image, arguments) if name in wanted else ():
                    print(line)
    except BuildError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def find_tool(storage: Path | None) -> Tool:
    """buildah or podman from PATH."""
    program = shutil.which("buildah") or shutil.which("podman")
    if program is None:
        raise BuildError("Neither buildah nor podman is installed. On Debian and Ubuntu: sudo apt-get install buildah")
    # No isolation of its own is needed to install packages, and chroot works where nothing else does.
    environment = {"BUILDAH_ISOLATION": "chroot"}
    if storage is not None:
        storage = storage.absolute()
        storage.mkdir(parents=True, exist_ok=True)
        configuration = storage / "storage.conf"
        configuration.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{storage}/graph"\nrunroot = "{storage}/run"\n'
            '[storage.options.overlay]\nskip_mount_home = "true"\n'
        )
        environment["CONTAINERS_STORAGE_CONF"] = str(configuration)
    return Tool(program, environment)


def find_base(tool: Tool) -> str:
    """The public slim Python where it can be had, else a root made of Debian's packages."""
    try:
        urllib.request.urlopen(_PUBLIC_REGISTRY, timeout=5)
    except urllib.error.HTTPError:
        return PUBLIC_BASE  # it answers, and wants a token: as it should
    except OSError:
        return debian_base(tool)
    return PUBLIC_BASE


def debian_base(tool: Tool) -> str:
    """A root file system by mmdebstrap, imported as an image."""
    key = hashlib.sha256(repr((_SUITE, _DEBIAN_PACKAGES)).encode()).hexdigest()[:12]
    name = f"localhost/prebinder-root:{key}"
    if tool.has(name):
        return name
    if shutil.which("mmdebstrap") is None:
        raise BuildError(
            "No public registry can be reached, and mmdebstrap is not installed. "
            "Name a base image with --base, or: sudo apt-get install mmdebstrap"
        )
    archive = cache_folder() / f"root-{key}.tar"
    if not archive.exists():
        say("making a base image of Debian's packages (about 30 s, once) …")
        part = archive.with_suffix(f".{os.getpid()}.part")
        include = f"--include={','.join(_DEBIAN_PACKAGES)}"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", include, _SUITE, str(part)]
        try:
            if subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
                raise BuildError("mmdebstrap could not make a base image; name one with --base.")
            part.replace(archive)
        finally:
            part.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="prebinder-root-") as folder:
        (Path(folder) / "Containerfile").write_text("FROM scratch\nADD root.tar /\n")
        shutil.copyfile(archive, Path(folder) / "root.tar")
        tool.run("build", "--timestamp", "0", "--tag", name, folder)
    return name


def make_wheel(folder: Path) -> Path:
    """Prebinder's own wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": commit_time()}
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BuildError(f"The wheel could not be made: {done.stderr.strip()[-500:]}")
    return next(folder.glob("*.whl"))


def preload(tool: Tool, image: str) -> Path:
    """An archive of a read-only store of containers/storage (`additionalimagestores`) that holds one image.

    A build's pod that has it in its own image unpacks no base image. Made once for each content and kept in the cache.
    """
    key = tool.run("inspect", "--type", "image", "--format", "{{.FromImageID}}", image, capture=True)
    archive = cache_folder() / f"store-{key[:12]}.tar"
    if archive.exists():
        return archive
    say("taking the base image into the builder (about 30 s, once) …")
    with tempfile.TemporaryDirectory(prefix="store-", dir=archive.parent) as work:
        store = Path(work) / "store"
        place = f"overlay@{store}+{work}/run:overlay.skip_mount_home=true"
        tool.run("push", "--quiet", image, f"containers-storage:[{place}]{_PRELOADED}")
        fix_store(store)
        part = Path(work) / "store.tar"
        command = ["tar", "--create", "--file", str(part), "--xattrs", "--numeric-owner", "--sort=name"]
        command += [f"--mtime=@{commit_time()}", "--directory", str(store), "."]
        if subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
            raise BuildError("The base image could not be packed for the builder; tar's output is above.")
        part.replace(archive)
    return archive


def fix_store(store: Path) -> None:
    """What is random in a store (a short name for the layer, times) is made the same each time; what says which image
    it holds may be read by everybody."""
    (layer,) = (path for path in (store / "overlay").iterdir() if len(path.name) == 64)
    (link,) = (store / "overlay" / "l").iterdir()
    short = layer.name[:26].upper()
    link.rename(link.with_name(short))
    (layer / "link").write_text(short)
    for file in (store / "overlay-images" / "images.json", store / "overlay-layers" / "layers.json"):
        text = re.sub(r'"created":"[^"]*"', '"created":"1970-01-01T00:00:00Z"', file.read_text())
        file.write_text(text)
    for path in (store, store / "overlay-images", *(store / "overlay-images").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prebinder"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build(
    tool: Tool, source: Path, image: str, base: str, wheel: Path, folder: Path, preloaded: str | None = None
) -> None:
    """One image from its folder, the wheel and the lock; `preloaded` is an image that it holds for builds."""
    context = folder / source.name
    shutil.copytree(source, context)
    (context / "wheel").mkdir()
    shutil.copy(wheel, context / "wheel")
    for further in _FURTHER_FILES.get(source.name, ()):
        shutil.copy(ROOT / further, context)
    if preloaded is not None:
        shutil.copy(preload(tool, preloaded), context / "store.tar")
    options: list[str] = ["--layers", "--timestamp", commit_time(), "--build-arg", f"BASE={base}", "--tag", image]
    if _BUNDLE.exists():
        options += ["--volume", f"{_BUNDLE}:/run/certificates.crt:ro"]
    tool.run("build", *options, "--file", context / "Containerfile", context)


def publish(tool: Tool, name: str, image: str, arguments: argparse.Namespace) -> Iterable[str]:
    """Push and archive as asked; what was made, a line each: `name@digest` of what was pushed."""
    if arguments.push:
        target = f"{arguments.push}{name}:{arguments.tag}"
        with tempfile.NamedTemporaryFile(prefix="digest-") as digest:
            verify = [f"--tls-verify={'false' if arguments.insecure else 'true'}"]
            tool.run("push", *verify, "--digestfile", digest.name, image, f"docker://{target}")
            yield f"{arguments.push}{name}@{Path(digest.name).read_text().strip()}"
    if arguments.archive:
        arguments.archive.mkdir(parents=True, exist_ok=True)
        archive = arguments.archive / f"{name}.tar"
        archive.unlink(missing_ok=True)
        tool.run("push", image, f"docker-archive:{archive}:{image}")
        yield str(archive)
    if not arguments.push and not arguments.archive:
        yield image


def commit_time() -> str:
    """Seconds since 1970 of the last commit: the time of every file in the images (reproducible-builds.org)."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "0"


def say(text: str) -> None:
    print(f"images: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
