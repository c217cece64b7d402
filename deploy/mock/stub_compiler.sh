#!/bin/sh
# Stands in for Tenstorrent's kernel compiler where no kernel ever runs: on
# ttnn's mock devices. It compiles nothing. What it writes, the package loads as
# if it were a kernel: a program of two instructions, linked at the address that
# the package's linker script says.
#
# install_stub_compiler.sh puts it where the package looks for the compiler.
set -eu
stub=${0%/*}/../../stub

if [ "${1-}" = --version ]; then
    exec cat "$stub/version"
fi

# What to write, and for a link: the script, where scripts include others from,
# and the firmware whose addresses are known.
output='' rule='' script='' symbols='' folders='' before=''
newline='
'
for argument do
    case $before in
        -o) output=$argument ;;
        -MF) rule=$argument ;;
    esac
    case $argument in
        -T*) script=$argument ;;
        -L*) folders=$folders$newline$argument ;;
        -Wl,--just-symbols=*) symbols=${argument#-Wl,} ;;
    esac
    before=$argument
done

# Links the two instructions to $1. The result depends on little: it is kept.
link() {
    key=$(printf '%s\n' "$script" "$symbols" "$folders" | cksum)
    kept=$stub/linked/${key%% *}-${key##* }.elf
    if [ ! -s "$kept" ]; then
        IFS=$newline
        # shellcheck disable=SC2086 # A folder a line.
        riscv64-unknown-elf-ld -m elf32lriscv -z max-page-size=16 \
            -z common-page-size=16 --no-relax --no-warn-rwx-segments --emit-relocs \
            $folders "$script" "$symbols" "$stub/two.o" -o "$kept.$$"
        # Another compiler may be at the same: the last one wins whole.
        mv "$kept.$$" "$kept"
    fi
    cp "$kept" "$1"
}

case $output in
    *.gch)
        : > "$output" ;;
    *.o)
        cp "$stub/two.o" "$output" ;;
    */firmware/*.elf)
        # Only with settings that the package has no firmware for: any of the
        # firmwares that it does have.
        name=${output%/*} name=${name##*/}
        for built in "$stub"/../../../tt_metal/pre-compiled/*/"$name/$name.elf"; do
            cp "$built" "$output"
            break
        done ;;
    *.elf)
        link "$output" ;;
    *)
        echo "the stub compiler cannot do this: $*" >&2
        exit 1 ;;
esac
if [ -n "$rule" ]; then
    echo "$output:" > "$rule"
fi
