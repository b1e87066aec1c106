#!/usr/bin/env bash
# Runs the verbs that coordinate (watch, lease, lock, elect, alarm) through etcdctl and quoratectl and
# compares standard output, standard error and exit code to the byte, then lets both stand in one line.
#
#   tests/interop/ctl_coordination.sh ENDPOINT ETCDCTL QUORATECTL
#
# ENDPOINT is a member whose keys below ctl/ and whose leases are ours. Lease IDs and revisions differ
# from call to call: IDs become ID, revisions the distance to the first of a case.
# CTL_COMPARE_VERBOSE=1 prints every case.
set -u

endpoint=$1 etcdctl=$2 quoratectl=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in $(compgen -e); do
    case $name in ETCDCTL_* | QUORATECTL_* | ETCD_*) unset "$name" ;; esac
done
export ETCDCTL_ENDPOINTS=$endpoint
passed=0 failed=0

# What the scenes need besides the client under test; it warns of variables that only `watch` knows.
etcdctl() { command "$etcdctl" "$@" 2>/dev/null; }

put() { etcdctl put "$@" >/dev/null; }

revision() { etcdctl get x -w fields | sed -n 's/^"Revision" : //p'; }

# Log lines and usage texts are etcdctl's own.
normalise() {
    perl -e '
        my ($base) = @ARGV; undef $/; $_ = <STDIN>;
        s/^\{"level":.*\n//gm; s/^Usage:.*//ms;
        s/((?:[Rr]evision|REV(?:ISION)?|notify|_LOCK_REV)"?(?: ?: ?|=))(\d+)/$1 . ($2 > $base ? "+" . ($2 - $base) : $2)/ge;
        s/("CompactRevision" ?: ?)(\d+)/$1 . ($2 ? "C" : 0)/ge;
        s/\b\d{14,20}\b/ID/g; s/[0-9a-f]{12,16}\b/ID/g;
        s/("key":")[A-Za-z0-9+\/=]{20,}/$1KEY/g;
        s/remaining\(\d+s\)/remaining(R)/g; s/("ttl":|"TTL" : )\d+/$1R/g;
        s/Warning: unrecognized environment variable.*\n//g;
        print;' "$1"
}

# Waits until the file $1 has the text $2 or the process $3 is gone, at most ten seconds.
await() {
    for _ in $(seq 200); do
        grep -q "$2" "$1" 2>/dev/null && return
        [ $# -lt 3 ] || kill -0 "$3" 2>/dev/null || return
        sleep 0.05
    done
    echo "waited in vain for $2 in $1" >&2
}

# Waits until the file $1 has not grown for a moment: what follows an event has been written, too.
settle() {
    local before=-1 after
    after=$(wc -c <"$1")
    while [ "$before" != "$after" ]; do
        sleep 0.4
        before=$after
        after=$(wc -c <"$1")
    done
}

# compare NAME: the outputs of both clients, after the functions `scene CTL` ran with each.
compare() {
    local name=$1 label ctl base
    for label in want have; do
        [ $label = want ] && ctl=$etcdctl || ctl=$quoratectl
        etcdctl del --prefix ctl/ >/dev/null
        base=$(revision)
        scene "$ctl" >"$work/out" 2>"$work/err" </dev/null
        local code=$?
        # Of messages only the length: revisions and IDs keep theirs.
        case $name in *" protobuf") wc -c <"$work/out" >"$work/size"; mv "$work/size" "$work/out" ;; esac
        echo "exit $code" >>"$work/out"
        { normalise "$base" <"$work/out"; echo ---; normalise "$base" <"$work/err"; } >"$work/$label"
    done
    if diff -u "$work/want" "$work/have" >"$work/diff"; then
        passed=$((passed + 1))
        [ -z "${CTL_COMPARE_VERBOSE:-}" ] || echo "same: $name"
    else
        failed=$((failed + 1))
        echo "DIFFERENT: $name"
        tail -n +3 "$work/diff" | sed 's/^/    /' | cut -c 1-300
    fi
}

# once ARGUMENTS...: a command line by itself.
once() {
    line=("$@")
    scene() { timeout 20 "$1" "${line[@]}"; }
    compare "$*"
}

# with_lease ARGUMENTS...: the word LEASE stands for a fresh lease with a key.
with_lease() {
    line=("$@")
    scene() {
        local id
        id=$(etcdctl lease grant 100 | cut -d ' ' -f 2)
        put 'ctl/ 1' x --lease "$id"
        timeout 20 "$1" "${line[@]/LEASE/$id}"
        local code=$?
        etcdctl lease revoke "$id" >/dev/null 2>&1
        return $code
    }
    compare "$*"
}

# watching ARGUMENTS...: what is seen of four writes; the revision goes back to before them, so that it
# does not matter when the watcher begins. Ended by SIGTERM after the last event.
watching() {
    line=("$@")
    scene() {
        local start log=$work/watching
        start=$(revision)
        put ctl/a 1
        put ctl/b 2
        etcdctl del ctl/a >/dev/null
        put ctl/a last
        : >"$log"
        "$1" watch --rev $((start + 1)) "${line[@]}" >"$log" &
        local pid=$!
        await "$log" "last\|bGFzdA\|6c\\\\x61\\\\x73\\\\x74" "$pid"
        settle "$log"
        kill $pid 2>/dev/null
        wait $pid
        local code=$?
        cat "$log"
        # A program killed by a signal is the same as Go's runtime ending by one.
        [ $code -eq 143 ] || return $code
    }
    compare "watch $*"
}

# told LINES [ARGUMENTS...]: an interactive watch.
told() {
    lines=$1
    shift
    line=("$@")
    scene() {
        local start
        start=$(revision)
        put ctl/a one
        # shellcheck disable=SC2059 # the lines are a format, too
        { printf "${lines//REV/$((start + 1))}"; sleep 0.4; } |
            timeout 20 "$1" watch -i "${line[@]}"
    }
    compare "watch -i $* <<< $lines"
}

formats="simple json fields table protobuf bogus"

# Leases.
for format in $formats; do
    once lease grant 100 -w "$format"
    with_lease lease timetolive LEASE -w "$format"
    with_lease lease timetolive LEASE --keys -w "$format"
    with_lease lease timetolive LEASE --keys --hex -w "$format"
    with_lease lease keep-alive --once LEASE -w "$format"
    once lease timetolive 1234 --keys -w "$format"
    once lease keep-alive 1234 -w "$format"
    [ "$format" = protobuf ] || with_lease lease revoke LEASE -w "$format"
    once alarm list -w "$format"
    once alarm disarm -w "$format"
done
once lease grant 0
once lease grant -1
once lease grant -- -1
once lease grant x
once lease grant
once lease grant 1 2
once lease grant 9000000001
once lease grant 99999999999999999999
once lease grant 5 --hex -w fields
for verb in revoke timetolive keep-alive; do
    once lease $verb
    once lease $verb zz
    once lease $verb 1234
    once lease $verb 1 2
    once lease $verb 0x12
done
once lease keep-alive 1234 --once
once alarm list x
once alarm disarm x
for format in simple json fields; do
    line=("$format")
    scene() {
        local id log=$work/renewals
        id=$(etcdctl lease grant 2 | cut -d ' ' -f 2)
        "$1" lease keep-alive "$id" -w "${line[0]}" >"$log" &
        await "$log" "TTL"
        etcdctl lease revoke "$id" >/dev/null
        wait $!
        local code=$?
        sort -u "$log"
        return $code
    }
    compare "lease keep-alive of a lease that is revoked -w $format"
done

# Watchers.
for format in simple json fields protobuf; do
    watching ctl/a -w $format
    watching ctl/a --prev-kv -w $format
    watching ctl/ --prefix --prev-kv --hex -w $format
done
watching ctl/a ctl/c
watching ctl/a b c
watching ctl/ --prefix --progress-notify
watching ctl/a -- echo hi
watching ctl/ --prefix -- sh -c 'env | grep ETCD_WATCH | sort'
watching ctl/a -w json -- echo hi
watching ctl/a -- false
watching ctl/a -- /nonexistent
watching ctl/a -- nonexistent
watching ctl/a -- sh -c 'kill -9 $$'
watching ctl/a -- sh -c 'exit 3'
ETCDCTL_WATCH_KEY=ctl/a watching
ETCDCTL_WATCH_KEY=ctl/a watching -- echo x
ETCDCTL_WATCH_KEY=ctl/a ETCDCTL_WATCH_RANGE_END=ctl/c watching
export ETCDCTL_WATCH_KEY=ctl/a
once watch ctl/b
once watch ctl/b -- echo x
once watch --
export ETCDCTL_WATCH_RANGE_END=ctl/c
once watch --prefix
unset ETCDCTL_WATCH_KEY
once watch
unset ETCDCTL_WATCH_RANGE_END
once watch
once watch --prefix
once watch -- echo hi
once watch ctl/a --
once watch ctl/a ctl/c --prefix
once watch ctl/a --rev x
once watch ctl/a --bogus
once watch ctl/c ctl/a
once watch ctl/a --rev -5
once watch ctl/a -w bogus
put ctl/a 1
put ctl/a 2
etcdctl compaction "$(revision)" >/dev/null
for format in simple json fields protobuf table; do
    once watch ctl/a --rev 1 -w $format
    once watch ctl/c ctl/a -w $format
done

# Interactive watchers.
told 'watch ctl/a --rev REV\n'
told 'watch ctl/a --rev REV --prev-kv\nwatch ctl/ --prefix\n'
told 'watch ctl/a --rev REV -- echo hi\n'
told "watch 'ctl/a' --rev REV -- sh -c \"exit 3\"\n"
told 'watch -i ctl/a --rev REV\n' extra
told 'watch ctl/a --rev REV\n' --prefix --rev 7
told 'watch\n'
told 'watch --prefix\n'
told 'watch --bogus\n'
told 'watch ctl/a --\n'
told 'watch ctl/a --rev x\n'
told 'watch ctl/a -w fields\n'
told 'watch ctl/a ctl/b --prefix\n'
told 'watch -- echo hi\n'
told 'watch ctl/a --rev 1\n'
told 'wat ctl/a\n'
told 'foo\n\n'
told 'progress\n'
told 'watch ctl/zzz\nprogress\n'
told 'watch ctl/zzz\nprogress\n' -w json
told 'watch ctl/zzz\nprogress\n' -w fields
told 'watch ctl/a --rev REV'
told ''

# Locks.
once lock
once lock ctl/L echo hi there
once lock ctl/L false
once lock ctl/L -- sh -c 'env | grep ETCD_LOCK | sort; exit 7'
once lock ctl/L -- sh -c 'kill -9 $$'
once lock ctl/L -- sh -c 'cat; echo read'
once lock ctl/L /nonexistent
once lock ctl/L nonexistent
once lock ctl/L sh -c x
once lock ctl/L --ttl 1 echo x
once lock ctl/L --ttl 0 echo x
once lock ctl/L --ttl -1 echo x
once lock ctl/L --ttl x
once lock 'ctl/a b/' -- sh -c 'echo $ETCD_LOCK_KEY'
once lock -- ctl/L echo x
once lock ctl/L -w bogus
once elect
once elect a b c
once elect a
once elect a b -l

# held SIGNAL ARGUMENTS...: holds a name until the signal.
held() {
    signal=$1
    shift
    line=("$@")
    scene() {
        local log=$work/held
        : >"$log"
        # A shell's background jobs ignore SIGINT unless they say otherwise.
        perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' "$1" "${line[@]}" >"$log" &
        local pid=$!
        await "$log" "ctl/\|ID\|Y3Rs\|[0-9a-f]\{16\}"
        etcdctl get ctl/ --prefix
        if [ "$signal" = lease ]; then
            etcdctl lease revoke "$(key_of_holder)" >/dev/null
        else
            kill -"$signal" $pid
        fi
        wait $pid
        local code=$?
        cat "$log"
        echo "left:"
        etcdctl get ctl/ --prefix
        return $code
    }
    compare "held until $signal: $*"
}

key_of_holder() { etcdctl get ctl/ --prefix --keys-only | sed -n '1s,.*/,,p'; }

for format in simple json fields; do
    held INT lock ctl/L -w $format
    held INT elect ctl/E me -w $format
done
held TERM lock ctl/L
held TERM elect ctl/E ""
held lease lock ctl/L
held lease elect ctl/E me

# An observer sees a leader, its end, and the next.
for format in simple json fields; do
    line=("$format")
    scene() {
        local log=$work/observed first second observer
        : >"$log"
        perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' "$1" elect -l ctl/E -w "${line[0]}" >"$log" &
        observer=$!
        for proposal in one two; do
            : >"$work/leads"
            "$1" elect ctl/E $proposal >"$work/leads" &
            await "$work/leads" $proposal
            await "$log" "$proposal\|b25l.*$\|dHdv"
            kill -TERM $!
            wait $!
        done
        await "$log" "two\|dHdv"
        kill -INT $observer
        wait $observer
        local code=$?
        cat "$log"
        return $code
    }
    compare "elect --listen -w $format"
done

# Both clients in one line: the order is that of arrival, whoever holds and whoever waits.
queue() {
    local holder=$1 waiter=$2 log=$work/queue
    etcdctl del --prefix ctl/ >/dev/null
    : >"$log"
    "$holder" lock ctl/Q -- sh -c "echo first >>$log; until [ -e $work/go ]; do sleep 0.05; done; echo done >>$log" &
    local first=$!
    await "$log" first
    "$waiter" lock ctl/Q -- sh -c "echo second >>$log" &
    local second=$!
    for _ in $(seq 200); do
        [ "$(etcdctl get ctl/Q/ --prefix --keys-only | grep -c ctl/Q)" = 2 ] && break
        sleep 0.05
    done
    : >"$work/go"
    wait $first $second
    rm "$work/go"
    if [ "$(tr '\n' ' ' <"$log")" = 'first done second ' ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "DIFFERENT: $(basename "$holder") before $(basename "$waiter"): $(tr '\n' ' ' <"$log")"
    fi
}
queue "$etcdctl" "$quoratectl"
queue "$quoratectl" "$etcdctl"
queue "$quoratectl" "$quoratectl"

etcdctl del --prefix ctl/ >/dev/null
echo "$passed of $((passed + failed)) scenes are the same"
[ "$failed" -eq 0 ]
