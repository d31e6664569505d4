"""Rulesets made on the spot by real tools from Debian: ufw, firewalld, shorewall, ferm, docker, libvirt and more.

`python bench/tool_rulesets.py DIR [NAME ...]` makes DIR/NAME.v4, NAME.v6 (iptables-save, ip6tables-save), NAME.nft and
NAME.json (`nft -a list ruleset`, and as JSON) for each script of bench/tool_configs. The tools are installed into a
Debian of their own in a temporary folder (debootstrap, with the system's own sources of packages). Each script runs
there with network, mounts and processes of its own, and writes to memory only: nothing that it does outlives it, and
the host's firewall is never touched. Needs root and debootstrap; takes about two minutes and 1 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent / "tool_configs"
PACKAGES = (
    "iptables", "nftables", "iproute2", "kmod", "ipset", "dbus", "procps", "ufw", "firewalld", "python3-nftables",
    "shorewall", "shorewall6", "ferm", "fail2ban", "netavark", "docker.io", "dnsmasq-base", "libvirt-clients",
    "libvirt-daemon", "libvirt-daemon-config-network", "libvirt-daemon-system",
)  # fmt: skip
SAVES = ("v4", "v6", "nft")
_HEADER = re.compile(r"^# (interfaces|backend|saves|counters): *(.*)$", re.MULTILINE)
_APT = Path("etc/apt")

# What runs first in the namespaces: a root of its own, written to memory, with the outer root's folder of results. Of
# the kernel's settings only those of the network can be written, which are the namespace's own.
_ENTER = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$STAGE"
mkdir "$STAGE/up" "$STAGE/work" "$STAGE/root" "$STAGE/proc"
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$STAGE/up,workdir=$STAGE/work" "$STAGE/root"
cd "$STAGE/root"
mount -t proc proc "$STAGE/proc"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind "$STAGE/proc/sys/net" proc/sys/net
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir -p run/results run/config run/lock lib/modules
mount --bind "$RESULTS" run/results
mount --bind "$CONFIG" run/config
exec chroot . /bin/bash /run/config/outline
"""

# What runs in the new root, around the script of a configuration.
_OUTLINE = r"""
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root
for tool in iptables ip6tables; do
    update-alternatives --quiet --set $tool /usr/sbin/$tool-$BACKEND
done
ip link set lo up
for entry in $INTERFACES; do
    name=${entry%%=*}
    ip link add "$name" type veth peer name "far-$name"
    ip link set "far-$name" up
    for address in $(echo "${entry#*=}" | tr , ' '); do
        case $address in *:*) now=nodad ;; *) now= ;; esac
        ip address add "$address" dev "$name" $now
    done
    ip link set "$name" up
done
start_firewalld() {
    mkdir -p /run/dbus
    dbus-daemon --system --fork
    firewalld --nofork --nopid > /run/firewalld.log 2>&1 &
    for _ in $(seq 60); do
        if firewall-cmd --state > /dev/null 2>&1; then return; fi
        sleep 0.5
    done
    cat /run/firewalld.log
    return 1
}
start_shorewall() {
    sed -i 's/^STARTUP_ENABLED=.*/STARTUP_ENABLED=Yes/; s/^SAVE_IPSETS=.*/SAVE_IPSETS=No/' /etc/$1/$1.conf
    $1 start
}
. /run/config/script
if [ -n "$COUNTERS" ]; then python3 /run/config/traffic.py; fi
for save in $SAVES; do
    case $save in
        v4) iptables-save $COUNTERS > /run/results/$NAME.v4 ;;
        v6) ip6tables-save $COUNTERS > /run/results/$NAME.v6 ;;
        nft) nft -a list ruleset > /run/results/$NAME.nft
             nft -j -a list ruleset > /run/results/$NAME.json ;;
    esac
done
"""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A script of bench/tool_configs and what its first lines ask for.

    interfaces   name=address,address of each
    backend      nft or legacy: the iptables that the tool finds
    saves        of SAVES
    counters     whether saves of iptables have counters, of packets that are sent to every interface before
    """

    name: str
    script: str
    interfaces: str
    backend: str
    saves: tuple[str, ...]
    counters: bool


def read_configuration(path: Path) -> Configuration:
    """Raises ValueError for lines that ask for what there is not."""
    script = path.read_text()
    asked = dict(_HEADER.findall(script))
    one = Configuration(
        path.stem, script, asked.get("interfaces", "").strip(), asked.get("backend", "nft"),
        tuple(asked.get("saves", "v4").split()), asked.get("counters") == "yes",
    )  # fmt: skip
    if one.backend not in {"nft", "legacy"} or not set(one.saves) <= set(SAVES):
        raise ValueError(f"{path.name}: backend {one.backend}, saves {one.saves}")
    return one


def configurations() -> list[Configuration]:
    """All of them, by name."""
    return [read_configuration(path) for path in sorted(CONFIGS.glob("*.sh"))]


def main() -> int:
    """Makes the rulesets. Returns the exit code: 1 if a tool failed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("folder", type=Path, help="where the rulesets go")
    options.add_argument("names", nargs="*", help="of bench/tool_configs, all by default")
    options.add_argument(
        "--keep", type=Path, metavar="ROOT", help="the Debian to use, made if it is not there, and kept"
    )
    arguments = options.parse_args()
    chosen = [one for one in configurations() if not arguments.names or one.name in arguments.names]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with debian(arguments.keep) as base:
        for one in chosen:
            began = time.monotonic()
            problem = make(base, one, arguments.folder)
            failed += problem is not None
            sizes = [path.stat().st_size for path in sorted(arguments.folder.glob(f"{one.name}.*"))]
            print(f"{one.name:24} {time.monotonic() - began:5.1f} s  {problem or f'{sum(sizes):,} bytes'}", flush=True)
    return 1 if failed else 0


# ------------------------------------------------------------------ a Debian of its own


@contextmanager
def debian(keep: Path | None) -> Iterator[Path]:
    """A root folder with the tools in it, gone afterwards unless it is to be kept."""
    if keep is not None:
        if not keep.exists():
            install(keep)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="tool-rulesets-", dir="/var/tmp") as folder:
        base = Path(folder) / "root"
        install(base)
        yield base


def install(base: Path) -> None:
    """A minimal Debian of the system's suite with PACKAGES. Nothing that is installed gets started."""
    suite, mirror = _source()
    print(f"Debian {suite} into {base}", flush=True)
    run(["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(base), mirror], 900)
    _use_sources_of_system(base)
    policy = base / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    apt = "apt-get -qq update && apt-get install -y -qq --no-install-recommends " + " ".join(PACKAGES)
    run(["chroot", str(base), "env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", apt], 900)


def _source() -> tuple[str, str]:
    """(suite, mirror) that the system gets its own packages from. Raises LookupError if it tells none."""
    fields = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = fields["VERSION_CODENAME"].strip('"')
    files = [path for path in (Path("/") / _APT).rglob("*") if path.suffix in {".list", ".sources"}]
    lines = [line.split() for path in files for line in path.read_text().splitlines()]
    for words in lines:
        if words[:1] in (["URIs:"], ["deb"]):
            mirror = next((word for word in words[1:] if word.startswith(("http:", "https:"))), None)
            if mirror is not None and mirror.rstrip("/").endswith("/debian"):
                return suite, mirror
    raise LookupError("no Debian mirror in the sources of apt")


def _use_sources_of_system(base: Path) -> None:
    """The system's sources, keys and certificates, so that apt works in the new root as it does outside."""
    shutil.rmtree(base / _APT / "sources.list.d", ignore_errors=True)
    (base / _APT / "sources.list").unlink(missing_ok=True)
    for name in ("sources.list", "sources.list.d", "apt.conf.d", "keyrings", "trusted.gpg.d"):
        _copy(Path("/") / _APT / name, base / _APT / name)
    for name in ("usr/share/keyrings", "etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
        _copy(Path("/") / name, base / name)


def _copy(source: Path, target: Path) -> None:
    """A file or a folder, over what is there; a link in the new root must not lead the copy out of it."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    elif source.exists():
        target.unlink(missing_ok=True)
        shutil.copy(source, target)


# ------------------------------------------------------------------ one ruleset


def make(base: Path, one: Configuration, folder: Path) -> str | None:
    """Runs the tool and saves what it made into the folder. Returns what went wrong, None for nothing."""
    with tempfile.TemporaryDirectory(prefix="tool-rulesets-") as temporary:
        stage, results, config = (Path(temporary) / name for name in ("stage", "results", "config"))
        for path in (stage, results, config):
            path.mkdir()
        (config / "outline").write_text(_OUTLINE)
        (config / "script").write_text(one.script)
        shutil.copy(CONFIGS / "traffic.py", config)
        environment = os.environ | {
            "BASE": str(base), "STAGE": str(stage), "RESULTS": str(results), "CONFIG": str(config), "NAME": one.name,
            "INTERFACES": one.interfaces, "BACKEND": one.backend, "SAVES": " ".join(one.saves),
            "COUNTERS": "-c" if one.counters else "",
        }  # fmt: skip
        namespaces = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        try:
            run([*namespaces, "sh", "-c", _ENTER], 180, environment)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            return f"FAILED: {error}"
        for path in results.iterdir():
            shutil.copy(path, folder / path.name)
    return None


def run(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> None:
    """Runs a command that must succeed. Raises subprocess.CalledProcessError, having shown the end of its output."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            subprocess.run(
                command,
                check=True,
                timeout=seconds,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            output.seek(0)
            print(output.read()[-1500:], file=sys.stderr)
            error.cmd = error.cmd[0]
            raise


if __name__ == "__main__":
    sys.exit(main())
