#!/usr/bin/env bash
# bootstrap_test.sh - runs ./bootstrap with stand-ins for dpkg-query, apt-get, sudo, id and make, and checks what it asks
# of them. Nothing is installed and nothing is built.
#   bootstrap_test.sh SCRATCH_DIR
set -u
mkdir -p "$1"
scratch=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")/../.." && pwd)
bad=0

stand_in() { # name body
    printf '#!/bin/bash\n%s\n' "$2" >"$scratch/path/$1"
    chmod +x "$scratch/path/$1"
}

# A folder of stand-ins; the real tools that bootstrap uses besides are linked, so that nothing else is found.
begin() { # user-id installed-packages
    rm -rf "$scratch/path" "$scratch/calls"
    mkdir -p "$scratch/path"
    for tool in bash env dirname cat mkdir rm nproc touch; do ln -s "$(command -v "$tool")" "$scratch/path/$tool"; done
    stand_in id "echo $1"
    stand_in make "echo make \"\$@\" >>$scratch/calls"
    stand_in apt-get "echo apt-get \"\$@\" frontend=\${DEBIAN_FRONTEND:-} >>$scratch/calls"
    if [[ $2 == all ]]; then
        stand_in dpkg-query "echo 'ii '"
    else
        stand_in dpkg-query "[[ \${@: -1} != lib* ]] && echo 'ii ' || { echo 'rc '; exit 0; }"
    fi
}

run() { # arguments of bootstrap; from a folder that is not the tree
    : >"$scratch/calls"
    (cd / && PATH=$scratch/path "$here/bootstrap" "$@" </dev/null >"$scratch/output" 2>&1)
    status=$?
}

expect() { # what wanted-status pattern-of-calls-and-output [pattern that may not occur]
    if [[ $status != "$2" ]] || ! cat "$scratch/output" "$scratch/calls" | grep -qE -- "$3" ||
        { [[ -n ${4:-} ]] && cat "$scratch/calls" | grep -qE -- "$4"; }; then
        printf '%s: status %s (expected %s); expected "%s"%s in:\n' "$1" "$status" "$2" "$3" "${4:+, not \"$4\"}"
        cat "$scratch/output" "$scratch/calls"
        bad=1
    fi
}

begin 0 all
run build
expect "nothing missing" 0 "^make -s -j" "apt-get"
run check
expect "check" 0 "^make .*check" "apt-get"
run
expect "no verb" 64 "usage"
run install
expect "unknown verb" 64 "usage"

begin 0 some
run build
expect "missing, root: update" 0 "^apt-get update .*frontend=noninteractive"
expect "missing, root: install" 0 "^apt-get install .* libzmq3-dev libcjson-dev .*frontend=noninteractive" "install .* gcc"

begin 1000 some
run build
expect "missing, user without sudo" 69 "apt-get install .*libzmq3-dev" "^(apt-get|make)"

stand_in sudo "echo sudo \"\$@\" >>$scratch/calls; [[ \$1 == -n ]] && shift; exec \"\$@\""
run build
expect "missing, sudo without a terminal" 0 "^sudo -n env .*apt-get install"

stand_in sudo "exit 1"
run build
expect "sudo refuses" 69 "could not install" "^make"

begin 0 some
rm "$scratch/path/dpkg-query"
run build
expect "no dpkg, no compiler" 69 "not a Debian system.*libzmq3-dev" "^make"

exit $bad
