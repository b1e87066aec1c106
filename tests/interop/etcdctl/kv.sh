#!/bin/sh
# The KV commands of one etcdctl:  kv.sh ETCDCTL ENDPOINT
set -u

tool=$1
endpoint=$2
prefix=interop/etcdctl/$$/
failures=0
version=$("$tool" version | head -n 1)

ctl() {
    "$tool" --endpoints="$endpoint" "$@" 2>&1
}

# expect NAME WANTED GOT
expect() {
    if [ "$2" != "$3" ]; then
        printf '%s: %s\n  wanted: %s\n  got:    %s\n' "$version" "$1" "$2" "$3"
        failures=$((failures + 1))
    fi
}

# expect_part NAME WANTED GOT: the answer contains the wanted text.
expect_part() {
    case $3 in
        *"$2"*) ;;
        *) expect "$1" "…$2…" "$3" ;;
    esac
}

# The number in the field $1 of the JSON on stdin.
number() {
    sed "s/.*\"$1\":\\([0-9]*\\).*/\\1/"
}

newline='
'
a=${prefix}a
b=${prefix}b
c=${prefix}c

expect 'put' 'OK' "$(ctl put "$a" one)"
expect 'get' "$a${newline}one" "$(ctl get "$a")"
expect 'get a missing key' '' "$(ctl get "$b")"
expect 'put with the old pair' "OK${newline}$a${newline}one" "$(ctl put "$a" two --prev-kv)"
expect 'put keeping the value' 'OK' "$(ctl put "$a" --ignore-value)"
expect 'get only the value' 'two' "$(ctl get "$a" --print-value-only)"
expect 'put another key' 'OK' "$(ctl put "$b" three)"
expect 'get a prefix' "$a${newline}two${newline}$b${newline}three" "$(ctl get --prefix "$prefix")"
expect 'get keys only' "$a$newline$newline$b" "$(ctl get --prefix "$prefix" --keys-only)"
expect 'get with a limit' "$a${newline}two" "$(ctl get --prefix "$prefix" --limit 1)"
expect 'get in descending order' "$b${newline}three${newline}$a${newline}two" \
    "$(ctl get --prefix "$prefix" --order DESCEND --sort-by KEY)"
expect 'get from a key' "$b${newline}three" "$(ctl get --from-key "$b" --limit 1)"

revision=$(ctl get "$a" -w json | number revision)
expect 'put at a known revision' 'OK' "$(ctl put "$a" later)"
expect 'get at an old revision' "$a${newline}two" "$(ctl get "$a" --rev "$revision")"
expect 'the next revision' "$((revision + 1))" "$(ctl get "$a" -w json | number revision)"
expect_part 'get at a future revision' 'mvcc: required revision is a future revision' \
    "$(ctl get "$a" --rev "$((revision + 1000000))")"
expect_part 'get an empty key' 'key is not provided' "$(ctl put '' x)"

expect 'txn that succeeds' "SUCCESS$newline${newline}OK" \
    "$(printf 'value("%s") = "later"\n\nput %s changed\n\nget %s\n\n' "$a" "$a" "$a" | ctl txn)"
expect 'txn that fails' "FAILURE$newline${newline}$a${newline}changed" \
    "$(printf 'value("%s") = "later"\n\nput %s never\n\nget %s\n\n' "$a" "$a" "$a" | ctl txn)"
expect 'txn on versions and revisions' "SUCCESS$newline${newline}OK$newline${newline}1" \
    "$(printf 'ver("%s") = "0"\nmod("%s") > "1"\n\nput %s new\ndel %s\n\n\n' \
        "$c" "$a" "$c" "$b" | ctl txn)"
expect_part 'txn with a key twice' 'duplicate key given in txn request' \
    "$(printf '\nput %s 1\nput %s 2\n\n\n' "$a" "$a" | ctl txn)"

expect 'del with the old pair' "1${newline}$c${newline}new" "$(ctl del "$c" --prev-kv)"
expect 'del a missing key' '0' "$(ctl del "$c")"

revision=$(ctl get "$a" -w json | number revision)
expect 'compaction' "compacted revision $revision" "$(ctl compaction "$revision" --physical)"
expect_part 'compaction twice' 'mvcc: required revision has been compacted' \
    "$(ctl compaction "$revision")"
expect_part 'get a compacted revision' 'mvcc: required revision has been compacted' \
    "$(ctl get "$a" --rev "$((revision - 1))")"
expect 'get at the compacted revision' "$a${newline}changed" "$(ctl get "$a" --rev "$revision")"
expect 'del a prefix' '1' "$(ctl del --prefix "$prefix")"
expect_part 'endpoint health' 'is healthy' "$(ctl endpoint health)"
expect_part 'member list' 'started' "$(ctl member list)"

if [ "$failures" -ne 0 ]; then
    echo "$version: $failures failures"
    exit 1
fi
echo "$version: all as expected"
