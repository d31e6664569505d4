# shellcheck shell=bash
# What the scripts share: Debian packages and a virtual environment, each only where it is missing. Sourced, not run.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PATH=${PATH//"$VENV/bin:"/} # an activated .venv must not be made from itself

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$@"
    exit 3
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

# have WHAT: is it there? A program; lib:NAME, a shared library; python:NAME, a module; file:PATH.
have() {
    case $1 in
    lib:*) PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -F -- "${1#lib:}" >/dev/null ;;
    python:*) command -v python3 >/dev/null && python3 -c "import ${1#python:}" 2>/dev/null ;;
    file:*) [[ -e ${1#file:} ]] ;;
    *) PATH=$PATH:/sbin:/usr/sbin command -v -- "$1" >/dev/null ;;
    esac
}

# packages WHAT=PACKAGE...: installs the packages of what is missing.
packages() {
    local pair log
    local -a missing=()
    for pair in "$@"; do
        have "${pair%%=*}" || missing+=("${pair#*=}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "missing, and there is no apt-get to install them: ${missing[*]}"
    ((EUID == 0)) || command -v sudo >/dev/null || die "missing, install them as root: ${missing[*]}"
    say "installing ${missing[*]}"
    log=$(mktemp)
    as_root apt-get -qq update >"$log" 2>&1 </dev/null || true # its last lists may do
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" \
        >>"$log" 2>&1 </dev/null || {
        cat -- "$log" >&2
        rm -f -- "$log"
        die "could not install ${missing[*]}"
    }
    rm -f -- "$log"
}

run_packages() {
    packages python3=python3 python:ensurepip=python3-venv ip=iproute2 lib:libnftables.so.1=libnftables1 \
        file:/etc/protocols=netbase
}

test_packages() {
    run_packages
    packages nft=nftables conntrack=conntrack iptables=iptables gcc=gcc file:/usr/include/stdio.h=libc6-dev \
        ping=iputils-ping tcpdump=tcpdump sysctl=procps
}

# Debian 12 and Ubuntu have clang-14; where a distribution has only others, apt-get says that there is none.
bpf_packages() {
    packages clang-14=clang-14 "file:/usr/include/linux/bpf.h=linux-libc-dev"
}

# What an environment depends on: pins, metadata, interpreter and place. It is made anew when this changes.
fingerprint() {
    {
        cat -- "$ROOT/requirements/$1.txt" "$ROOT/pyproject.toml"
        python3 -c 'import sys; print(sys.version, sys.prefix)'
        printf '%s\n' "$ROOT"
    } | sha256sum | cut -d ' ' -f 1
}

stamped() {
    [[ -f $VENV/.$1 && $(<"$VENV/.$1") == "$(fingerprint "$1")" ]]
}

# environment run|dev: makes .venv with the pinned packages and conntracker itself, and puts it first in PATH.
environment() {
    local kind=$1
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "needs Python 3.11 or newer"
    if ! stamped "$kind" && ! { [[ $kind == run ]] && stamped dev; }; then
        say "setting up .venv ($kind)"
        rm -rf -- "$VENV"
        python3 -m venv "$VENV"
        local -a pip=("$VENV/bin/python" -m pip --quiet --disable-pip-version-check --no-input install)
        "${pip[@]}" --require-hashes -r "$ROOT/requirements/$kind.txt" >&2
        "${pip[@]}" --no-deps --no-build-isolation --editable "$ROOT" >&2
        fingerprint "$kind" >"$VENV/.$kind"
    fi
    export PATH=$VENV/bin:$PATH:/sbin:/usr/sbin
    unset PYTHONHOME PYTHONPATH
}
