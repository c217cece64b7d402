#!/bin/sh
# Prepares a Python with ttnn's mock devices, for hosts without a card.
#
#   eval "$(deploy/mock/setup.sh [FOLDER])"
#
# FOLDER is where the environment goes, target/ttnn-python unless named. Prints
# what the shell has to export for builds and runs with the feature `ttnn`. Does
# nothing where all of it is there. Needs Python 3.10 or 3.12 with a shared
# libpython; LLAMA_MESH_PYTHON names one.
set -eu

version=0.81.1
# What the package imports of what it declares.
imports='loguru>=0.6 graphviz>=0.20 numpy>=1.26,<2'

say() {
    echo "deploy/mock/setup.sh: $*" >&2
}
fail() {
    say "$@"
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../target/ttnn-python}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
python=$folder/bin/python

# Says where libpython is, if this Python is one that can be embedded.
probe='
import os, sys, sysconfig, ensurepip, venv
get = sysconfig.get_config_var
assert sys.version_info[:2] in ((3, 10), (3, 12))
assert get("Py_ENABLE_SHARED") == 1
folders = [get("LIBDIR"), os.path.join(get("LIBDIR"), get("MULTIARCH") or "")]
print(next(f for f in folders if os.path.exists(os.path.join(f, get("INSTSONAME")))))'

# Every Python that might do, the newer version first. pyenv is asked for its
# folders alone: what it puts on PATH may be a name without a Python behind it.
candidates() {
    if [ -n "${LLAMA_MESH_PYTHON-}" ]; then
        echo "$LLAMA_MESH_PYTHON"
        return
    fi
    roots="${PYENV_ROOT-} ${HOME-}/.pyenv /root/.pyenv $(pyenv root 2> /dev/null || true)"
    for minor in 12 10; do
        echo "python3.$minor"
        for root in $roots; do
            ls -d "$root/versions/3.$minor."*"/bin/python3.$minor" 2> /dev/null || true
        done
    done
    echo python3
}
find_python() {
    candidates | while read -r candidate; do
        if "$candidate" -c "$probe" > /dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

# The packages of the system that are not there.
missing() {
    command -v riscv64-unknown-elf-ld > /dev/null || echo binutils-riscv64-unknown-elf
    ldconfig -p 2> /dev/null | grep -q 'libatomic\.so\.1' || echo libatomic1
}

PATH=$PATH:/sbin:/usr/sbin
ready=$folder/ready
if [ "$(cat "$ready" 2> /dev/null)" != "$version" ] || ! "$python" -c "$probe" > /dev/null 2>&1
then
    packages=$(missing)
    if [ -n "$packages" ]; then
        # shellcheck disable=SC2086 # A word a package.
        { [ "$(id -u)" = 0 ] && apt-get update -qq >&2 &&
            apt-get install -qq -y --no-install-recommends $packages >&2; } ||
            fail "install these first: apt-get install" $packages
    fi
    base=$(find_python)
    [ -n "$base" ] || fail "no Python 3.10 or 3.12 with a shared libpython and venv was" \
        "found: install one (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install" \
        "3.12), or name it in LLAMA_MESH_PYTHON"
    [ -e "$folder/pyvenv.cfg" ] || [ -z "$(ls -A "$folder")" ] ||
        fail "$folder has something else in it: name another folder"
    say "ttnn $version for $base goes to $folder"
    "$base" -m venv --clear "$folder"
    # shellcheck disable=SC2086 # A word a package.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
        "ttnn==$version" $imports >&2 ||
        fail "pip could not install ttnn $version; it is built for Linux on x86-64 with" \
            "glibc 2.34 or newer"
    "$here/install_stub_compiler.sh" "$python"
    LOGURU_LEVEL=ERROR "$python" -c 'import ttnn' >&2 ||
        fail "ttnn $version is installed and cannot be imported"
    echo "$version" > "$ready"
fi

site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
cat << EXPORTS
export PYO3_PYTHON='$python'
export LD_LIBRARY_PATH='$("$python" -c "$probe")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}'
export LLAMA_MESH_TTNN_SITE_PACKAGES='$site'
export TT_METAL_CACHE='$folder/kernels'
EXPORTS
