"""What files of /proc/PID say."""

from __future__ import annotations

import contextlib
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.wire import procfs
from conntracker.wire.procfs import CMDLINE_LIMIT, Place, Stat, place

ID = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
OTHER = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
POD = "2c48913c-b29f-11e7-9350-020968147796"
SLICED = POD.replace("-", "_")
AFTER = b" S 1200 77 77 0 -1 %d 100 0 0 0 2 1 0 0 20 0 1 0 %d 9000 200 18446744073709551615 1 1"


@pytest.mark.parametrize("comm", ["bash", "tmux: server", "a b) S 5 (c", "(sd-pam)", "", ")", "a\nb"])
def test_stat(comm: str) -> None:
    """Names with blanks, parentheses and newlines do not move the fields behind them."""
    found = procfs.stat(b"77 (" + comm.encode() + b")" + AFTER % (0x400100, 12345) + b"\n")
    assert found == Stat(comm.replace("\n", "\\n"), 1200, 12345, False)


def test_kernel_thread() -> None:
    """A thread of the kernel is told by its flags."""
    assert procfs.stat(b"2 (kthreadd)" + AFTER % (0x208040, 0)).kernel_thread


@pytest.mark.parametrize(("data", "expected"), [(b"1000", 1000), (b"0\n", 0), (b"4294967295", None)])
def test_loginuid(data: bytes, expected: int | None) -> None:
    """-1 is nobody."""
    assert procfs.loginuid(data) == expected


CGROUPS = [
    (b"0::/system.slice/ssh.service\n", "/system.slice/ssh.service"),
    (b"0::/a:b/c\n", "/a:b/c"),
    (b"0::/system.slice/x.service (deleted)\n", "/system.slice/x.service"),
    # hybrid hosts: systemd's processes in one or the other, containers of cgroupfs in the old one
    (b"1:name=systemd:/user.slice/user-0.slice/session-1.scope\n0::/\n", "/user.slice/user-0.slice/session-1.scope"),
    (b"1:name=systemd:/init.scope\n0::/init.scope\n", "/init.scope"),
    (b"2:cpu,cpuacct:/x\n1:name=systemd:/docker/" + ID.encode() + b"\n0::/system.slice/containerd.service\n",
     f"/docker/{ID}"),
    (b"1:name=systemd:/\n0::/mine\n", "/mine"),
    (b"1:name=systemd:/\n0::/\n", "/"),
    (b"2:cpu:/x\n1:name=systemd:/y\n", "/y"),
    (b"2:cpu:/x\n", None),
    (b"", None),
    (b"0::/../other\n", "/../other"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), CGROUPS)
def test_cgroup(data: bytes, expected: str | None) -> None:
    """Of the unified hierarchy and systemd's own, the path that says more is given."""
    assert procfs.cgroup(data) == expected


CMDLINES = [
    (b"", ""),
    (b"\0\0", ""),
    (b"/bin/true\0", "/bin/true"),
    (b"sh\0-c\0echo 'a' $b\0", """sh -c 'echo '"'"'a'"'"' $b'"""),
    (b"printf\0\0x\0", "printf '' x"),
    (b"printf\0a\nb'c\\\0", "printf $'a\\nb\\'c\\\\'"),
    (b"x\0\xff\x1b[2J\xc2\x9b\0", "x $'\\xff\\x1b[2J\\u009b'"),
    (b"x\0\xc3\xa9\0", "x 'é'"),
    (b"nginx: worker process\0\0\0\0\0", "nginx: worker process"),
    (b"postgres: walwriter ", "postgres: walwriter "),
    (b"title\x1b[2J here", "title\\x1b[2J here"),
]


@pytest.mark.parametrize(("data", "expected"), CMDLINES)
def test_cmdline(data: bytes, expected: str) -> None:
    """Arguments are quoted as one would type them; a title that was written over them stays as it is."""
    assert procfs.cmdline(data) == expected


def test_cmdline_is_bounded() -> None:
    """A long command line is cut, and says so."""
    for data in (b"x\0" + b"y" * CMDLINE_LIMIT, b"\x01" * CMDLINE_LIMIT, "é".encode() * CMDLINE_LIMIT):
        line = procfs.cmdline(data)
        assert len(line) <= CMDLINE_LIMIT
        assert line.endswith("...")
        assert "\\xc3" not in line


CONTAINERS = "/system.slice/containerd.service"
PLACES = [
    ("/", Place()),
    ("/system.slice/ssh.service", Place("ssh.service")),
    ("/init.scope", Place("init.scope")),
    ("/system.slice/system-getty.slice/getty@tty1.service", Place("getty@tty1.service")),
    ("/user.slice/user-1000.slice/session-3.scope", Place("session-3.scope")),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", Place("foo.service")),
    ("/user.slice/user-1000.slice/user@1000.service/init.scope", Place("init.scope")),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-x\\x2dy-7.scope",
     Place("app-gnome-x\\x2dy-7.scope")),
    ("/system.slice/_cpu.service", Place("cpu.service")),
    ("/system.slice/mnt.mount", Place("mnt.mount")),
    ("/system.slice/postgresql.service/worker", Place("postgresql.service")),
    # docker: systemd driver, cgroupfs, systemd inside, docker in docker, builds
    (f"/system.slice/docker-{ID}.scope", Place(f"docker-{ID}.scope", ID, "docker")),
    (f"/docker/{ID}", Place(None, ID, "docker")),
    (f"/system.slice/docker-{ID}.scope/system.slice/nginx.service", Place("nginx.service", ID, "docker")),
    (f"/docker/{OTHER}/docker/{ID}", Place(None, ID, "docker")),
    (f"/docker/{OTHER}/system.slice/docker-{ID}.scope", Place(f"docker-{ID}.scope", ID, "docker")),
    ("/docker/buildkit/qkl8y0m8mltyfbb6v0s7g9vcy", Place(None, "qkl8y0m8mltyfbb6v0s7g9vcy", "buildkit")),
    ("/system.slice/docker.service", Place("docker.service")),
    (f"/{ID}", Place(None, ID)),
    # podman: with and without systemd, rootless, quadlet, pods; its conmon is not in the container
    (f"/machine.slice/libpod-{ID}.scope/container", Place(f"libpod-{ID}.scope", ID, "podman")),
    (f"/libpod_parent/libpod-{ID}", Place(None, ID, "podman")),
    (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
     Place(f"libpod-{ID}.scope", ID, "podman")),
    (f"/user.slice/user-1000.slice/user@1000.service/app.slice/redis.service/libpod-payload-{ID}",
     Place("redis.service", ID, "podman")),
    (f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope", Place(f"libpod-{ID}.scope", ID, "podman")),
    (f"/machine.slice/libpod-conmon-{ID}.scope", Place(f"libpod-conmon-{ID}.scope")),
    # kubernetes: each runtime, each driver, kind (nodes are containers)
    (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICED}.slice/cri-containerd-{ID}.scope",
     Place(f"cri-containerd-{ID}.scope", ID, "kubernetes")),
    (f"/kubepods.slice/kubepods-pod{SLICED}.slice/crio-{ID}.scope", Place(f"crio-{ID}.scope", ID, "kubernetes")),
    (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICED}.slice/crio-{ID}.scope/container",
     Place(f"crio-{ID}.scope", ID, "kubernetes")),
    (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICED}.slice/docker-{ID}.scope",
     Place(f"docker-{ID}.scope", ID, "kubernetes")),
    (f"/kubepods/besteffort/pod{POD}/{ID}", Place(None, ID, "kubernetes")),
    (f"/kubepods/burstable/pod{POD}/crio-{ID}", Place(None, ID, "kubernetes")),
    (f"{CONTAINERS}/kubepods-besteffort-pod{SLICED}.slice:cri-containerd:{ID}",
     Place("containerd.service", ID, "kubernetes")),
    (f"/docker/{OTHER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICED}.slice/cri-containerd-{ID}.scope",
     Place(f"cri-containerd-{ID}.scope", ID, "kubernetes")),
    (f"/kubepods/besteffort/pod{POD}", Place(None, POD, "kubernetes")),
    (f"/kubepods.slice/kubepods-pod{SLICED}.slice", Place(None, POD, "kubernetes")),
    (f"/kubepods.slice/kubepods-pod{SLICED}.slice/crio-conmon-{ID}.scope",
     Place(f"crio-conmon-{ID}.scope", POD, "kubernetes")),
    (f"/system.slice/crio-{ID}.scope", Place(f"crio-{ID}.scope", ID, "cri-o")),
    # containerd by itself
    (f"/system.slice/nerdctl-{ID}.scope", Place(f"nerdctl-{ID}.scope", ID, "containerd")),
    (f"/default/{ID}/init.scope", Place("init.scope", ID, "containerd")),
    (f"/system.slice/cri-containerd-{ID}.scope", Place(f"cri-containerd-{ID}.scope", ID, "containerd")),
    # lxc, lxd, incus, libvirt
    ("/lxc.payload.web", Place(None, "web", "lxc")),
    ("/lxc.payload.web/system.slice/nginx.service", Place("nginx.service", "web", "lxc")),
    ("/lxc.payload.web/.lxc", Place(None, "web", "lxc")),
    ("/lxc.payload/web", Place(None, "web", "lxc")),
    ("/lxc/100/ns/system.slice/ssh.service", Place("ssh.service", "100", "lxc")),
    ("/lxc.monitor.web", Place()),
    (f"/lxc.payload.web/system.slice/docker-{ID}.scope", Place(f"docker-{ID}.scope", ID, "docker")),
    ("/machine.slice/machine-lxc\\x2d63139\\x2dweb.scope/libvirt",
     Place("machine-lxc\\x2d63139\\x2dweb.scope", "web", "libvirt")),
    ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator", Place("machine-qemu\\x2d1\\x2dvm.scope")),
    # systemd-nspawn
    ("/machine.slice/machine-my\\x2dbox.scope/payload/system.slice/cron.service",
     Place("cron.service", "my-box", "nspawn")),
    ("/machine.slice/systemd-nspawn@box.service/payload", Place("systemd-nspawn@box.service", "box", "nspawn")),
    ("/machine.slice/systemd-nspawn@box.service/supervisor", Place("systemd-nspawn@box.service")),
    # others
    ("/system.slice/garden.service/garden/70eb4c98-9d4b-4c1b", Place("garden.service", "70eb4c98-9d4b-4c1b", "garden")),
    (f"/ecs/test-ecs-classic/5a0d5ceddf6c44c1928d367a815d890f/{ID}", Place(None, ID, "ecs")),
    ("/ecs/55091c13b8cf4801b527f4601742204d/55091c13b8cf4801b527f4601742204d-432624819",
     Place(None, "55091c13b8cf4801b527f4601742204d-432624819", "ecs")),
]  # fmt: skip


@pytest.mark.parametrize(("path", "expected"), PLACES)
def test_place(path: str, expected: Place) -> None:
    """A cgroup's path tells the innermost unit and the innermost container."""
    assert place(path) == expected


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1), min_size=2, max_size=8))
def test_cmdline_can_be_typed(words: list[str]) -> None:
    """A shell reads what is printable back as the arguments that it was."""
    if all(word.isprintable() for word in words):
        assert shlex.split(procfs.cmdline("".join(word + "\0" for word in words).encode())) == words


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Any bytes give a value or DecodeError, and text in which nothing moves a cursor."""
    for parse in (procfs.stat, procfs.loginuid, procfs.cgroup):
        with contextlib.suppress(DecodeError):
            parse(data)
    for line in (procfs.cmdline(data), procfs.text(data)):
        assert line.isprintable()
        line.encode()
    place(procfs.text(data))


@given(st.binary(max_size=60), st.integers(0, 2**64), st.integers(0, 2**32))
def test_any_name(comm: bytes, start: int, flags: int) -> None:
    """Whatever a process is called, the fields behind its name are found."""
    found = procfs.stat(b"5 (" + comm + b")" + AFTER % (flags, start))
    assert (found.comm, found.ppid, found.start) == (procfs.text(comm), 1200, start)
