#!/bin/sh
# Puts the stub compiler into the ttnn package of a Python.
#
#   install_stub_compiler.sh PYTHON
#
# For mock devices only: refuses where there is a card or a real compiler.
set -eu

fail() {
    echo "install_stub_compiler.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: install_stub_compiler.sh PYTHON"
here=$(cd "$(dirname "$0")" && pwd)
package=$("$1" -c '
import importlib.util
spec = importlib.util.find_spec("ttnn")
print(spec.submodule_search_locations[0] if spec else "")') || fail "$1 does not run"
[ -n "$package" ] || fail "$1 has no package ttnn"
for tool in as ld; do
    command -v "riscv64-unknown-elf-$tool" > /dev/null ||
        fail "install binutils for RISC-V: apt-get install binutils-riscv64-unknown-elf"
done

sfpi=$package/runtime/sfpi
compiler=$sfpi/compiler/bin/riscv-tt-elf-g++
[ ! -e /dev/tenstorrent ] || fail "this host has a card: its kernels need the real compiler"
[ ! -d /opt/tenstorrent/sfpi ] || fail "/opt/tenstorrent/sfpi is the real compiler"
[ ! -e "$compiler" ] || [ -d "$sfpi/stub" ] || fail "$compiler is the real compiler"

rm -rf "$sfpi/stub"
mkdir -p "$sfpi/stub/linked" "${compiler%/*}"

# The package has firmware ready for one version of the compiler, and asks for it
# by the first line that the compiler says.
number() {
    sed -n "s/^sfpi_$1='\(.*\)'/\1/p" "$package/tt_metal/sfpi-version"
}
echo "riscv-tt-elf-g++ (tenstorrent/sfpi:$(number version)[$(number build)]) 15.1.0" \
    > "$sfpi/stub/version"

# A call, so that there is something to relocate: the loader insists.
riscv64-unknown-elf-as -march=rv32im -mabi=ilp32 -mno-relax -o "$sfpi/stub/two.o" << 'ASM'
    .text
    .globl _start
_start:
    call done
    ret
    .globl done
done:
    ret
ASM
cp "$here/stub_compiler.sh" "$compiler"
chmod +x "$compiler"
