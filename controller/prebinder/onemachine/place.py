"""Where the podman of one instance lives: its folders and names, and the configuration that it gets by environment.

All of it is a function of the state folder, but for the subnet, which must be free on this machine, and the network's
name, which is new each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import resource
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from prebinder.model.failure import EngineError

_SOCKET_LIMIT = 100  # sun_path holds 108 bytes
_WANTED_LIMITS = {"nofile": (resource.RLIMIT_NOFILE, 65536), "nproc": (resource.RLIMIT_NPROC, 32768)}


@dataclass(frozen=True, slots=True)
class Place:
    """The names and folders of one instance's podman, all of them functions of its state folder."""

    folder: Path
    instance: str

    @classmethod
    def of(cls, state: Path) -> Place:
        folder = state.absolute() / "engine"
        return cls(folder, hashlib.sha256(str(folder).encode()).hexdigest()[:10])

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def interface(self) -> str:
        return f"pb-{self.instance}"  # 13 characters; the kernel takes 15

    @property
    def storage_conf(self) -> Path:
        """Its path also marks the processes of this instance."""
        return self.folder / "storage.conf"

    @property
    def subnet_file(self) -> Path:
        return self.folder / "subnet"

    @property
    def socket(self) -> Path:
        socket = self.folder / "podman.sock"
        if len(os.fsencode(socket)) < _SOCKET_LIMIT:
            return socket
        # Too deep for a Unix socket: a folder of our own in the place for such things.
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        return base / f"prebinder-{os.geteuid()}-{self.instance}" / "podman.sock"

    def environment(self) -> dict[str, str]:
        return {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.storage_conf),
            "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"),
            "REGISTRY_AUTH_FILE": str(self.folder / "auth.json"),
            "TMPDIR": str(self.folder / "tmp"),
            "HOME": str(self.folder / "home"),
        }


def write_configuration(place: Place) -> None:
    """Everything that podman is told, written anew; a network of its own. Raises EngineError without a free subnet."""
    for folder in (place.storage, place.run, place.folder / "tmp", place.folder / "home", place.folder / "networks"):
        folder.mkdir(parents=True, exist_ok=True)
    place.folder.chmod(0o700)
    place.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A new name each time: netavark keeps addresses by network name outside our folder, and those of containers that
    # were killed are never given back.
    name = f"prebinder-{place.instance}-{secrets.token_hex(3)}"
    for old in (place.folder / "networks").glob("*.json"):
        old.unlink()
    subnet = _choose_subnet(place)
    network = {
        "name": name,
        "id": hashlib.sha256(name.encode()).hexdigest(),
        "driver": "bridge",
        "network_interface": place.interface,
        "created": "2026-01-01T00:00:00Z",
        "subnets": [{"subnet": str(subnet), "gateway": str(subnet[1])}],
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
    }
    (place.folder / "networks" / f"{name}.json").write_text(json.dumps(network))
    ulimits = [f"{key}={_limit(key)}:{_limit(key)}" for key in _WANTED_LIMITS]
    containers = f"""\
# Written by Prebinder at each start.
[containers]
default_ulimits = {json.dumps(ulimits)}
[engine]
runtime = "{_runtime()}"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = {json.dumps(str(place.folder / "networks"))}
default_network = "{name}"
default_subnet = "{subnet}"
"""
    (place.folder / "containers.conf").write_text(containers)
    place.storage_conf.write_text(
        f'[storage]\ndriver = "overlay"\n'
        f"graphroot = {json.dumps(str(place.storage))}\nrunroot = {json.dumps(str(place.run))}\n"
    )
    (place.folder / "registries.conf").write_text('unqualified-search-registries = ["docker.io"]\n')
    (place.folder / "auth.json").write_text("{}")


def network_name(place: Place) -> str:
    """The network that `write_configuration` made."""
    return next((place.folder / "networks").glob("*.json")).stem


def _limit(key: str) -> int:
    """As many as we want, or as the hard limit of this process allows: nothing can raise that for a container."""
    number, wanted = _WANTED_LIMITS[key]
    hard = resource.getrlimit(number)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _runtime() -> str:
    """crun where there is only cgroup v2; elsewhere runc, for crun refuses hybrid hierarchies."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    order = ("crun", "runc") if unified else ("runc", "crun")
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"
    return next((name for name in order if shutil.which(name, path=search)), order[0])


def _choose_subnet(place: Place) -> ipaddress.IPv4Network:
    """A /24 of 10.64.0.0/10 for this instance: the one it had, or one by its name, that no route of the machine uses.

    Chosen by the instance's hash, so that two instances that start at once choose differently.
    """
    taken = _routed_networks(place.interface)
    with contextlib.suppress(OSError, ValueError):
        had = ipaddress.IPv4Network(place.subnet_file.read_text().strip())
        if not any(had.overlaps(other) for other in taken):
            return had
    start = int(place.instance, 16)
    for step in range(16384):
        number = (start + step * 257) % 16384
        subnet = ipaddress.IPv4Network(f"10.{64 + number // 256}.{number % 256}.0/24")
        if not any(subnet.overlaps(other) for other in taken):
            place.subnet_file.write_text(str(subnet))
            return subnet
    raise EngineError("No free subnet in 10.64.0.0/10 for the containers' network: the machine routes all of it.")


def _routed_networks(except_interface: str) -> list[ipaddress.IPv4Network]:
    """What the machine's routing table reaches, other than by default (proc_net_route: little-endian hex)."""
    networks = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            interface, destination, *_ = fields = line.split()
            mask = fields[7]
            if interface == except_interface or mask == "00000000":
                continue
            address = ipaddress.IPv4Address(bytes.fromhex(destination)[::-1])
            networks.append(
                ipaddress.IPv4Network(f"{address}/{ipaddress.IPv4Address(bytes.fromhex(mask)[::-1])}", strict=False)
            )
    return networks
