# shellcheck shell=dash
# For tests: `. "$LAB/lib.sh"`.
set -e

# Runs this and shows it.
show() {
    echo "+ $*"
    "$@"
}

# Boots Linux, has it run these tests of L2 (names separated by commas, see guest/), and succeeds if all of them do and the machine then
# powers off: `boot NAMES [OPTION OF hmmvisor...]`. The summary is in $TMP/summary.json. The kernel is the usual one, or $KERNEL.
boot() {
    names=$1
    shift
    echo "+ hmmvisor run --kernel ... lab.run=$names $*"
    {
        hmmvisor run --kernel "${KERNEL:-$LAB/kernel}" --initrd "$LAB/initrd" --cmdline "console=ttyS0 quiet panic=-1 lab.run=$names" \
            --engine "$ENGINE" --memory 256M --json "$TMP/summary.json" "$@" </dev/null 2>&1 || echo "hmmvisor: exit code $?" >"$TMP/status"
    } | tee "$TMP/console"
    if [ -e "$TMP/status" ]; then
        cat "$TMP/status"
        return 1
    fi
    for name in $(echo "init,$names,end" | tr , ' '); do
        grep -q "^lab-guest: ok $name" "$TMP/console" || {
            echo "L2 did not say that $name was all right"
            return 1
        }
    done
    grep -q '"end": *"power-off"' "$TMP/summary.json" || {
        echo "the summary does not say that the machine was switched off"
        return 1
    }
}

# A number in the summary, whatever it is in.
figure() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" "$TMP/summary.json"; }

# Runs the Rust tests of this binary, but the ones named: `rust BINARY [TEST NOT TO RUN...]`.
rust() {
    binary=$1
    shift
    for test; do
        set -- "$@" --skip "$test"
        shift
    done
    # shellcheck disable=SC2086
    show "$binary" $ONLY "$@"
}
