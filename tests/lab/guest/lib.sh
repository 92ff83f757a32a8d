# shellcheck shell=dash
# For tests of L2: `. /lab/lib.sh`.
set -e

# Loads modules of this kernel that are not a part of it, or the accelerator's.
load() {
    for module; do
        [ -d "/sys/module/$(echo "$module" | tr - _)" ] || [ ! -e "/modules/$module.ko" ] || insmod "/modules/$module.ko"
    done
}

# Succeeds once the command does; at the latest after half a minute it fails.
wait_for() {
    for second in $(seq 30); do
        if "$@"; then
            return
        fi
        sleep 1
    done
    echo "not in $second s: $*"
    return 1
}

# This value of /proc/meminfo, in KiB.
meminfo() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }
