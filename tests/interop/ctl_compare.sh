#!/usr/bin/env bash
# Runs the same command lines through etcdctl and quoratectl and compares standard output and exit
# code to the byte; for failures also the first line of standard error that is not a log line.
#
#   tests/interop/ctl_compare.sh ENDPOINT ETCDCTL QUORATECTL
#
# ENDPOINT is an empty, disposable etcd or Quorate member. Every case is run by each client on keys
# of its own round: both rounds begin by deleting everything, and revisions are normalised, because
# the second round starts where the first ended. CTL_COMPARE_VERBOSE=1 prints every case.
set -u

endpoint=$1 etcdctl=$2 quoratectl=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in $(compgen -e); do
    case $name in ETCDCTL_* | QUORATECTL_*) unset "$name" ;; esac
done
export ETCDCTL_ENDPOINTS=$endpoint
# Nobody listens on the discard port.
dead=127.0.0.1:9

# The revision before a round; the numbers that a round prints are made relative to it.
base=0
normalise() {
    perl -pe '
        BEGIN { $base = '"$base"' }
        s/((?:[Rr]evision|_revision)"? ?: ?)(\d+)/$1 . ($2 > $base ? "+" . ($2 - $base) : $2)/ge;
        s/(compacted revision )(\d+)/$1 . ($2 > $base ? "+" . ($2 - $base) : $2)/ge;
        s/took = [0-9.]+(ns|µs|ms|s)\b/took = T/;
        s/"took":"[^"]+"/"took":"T"/g;
        s/^("Took" : )\S+$/$1T/;
        s/^(.*\b[0-9a-f]{8,16}, \d+\.\d+\.\d+, )(\S+, )(.*, (?:true|false), (?:true|false), \d+, )\d+, \d+,/$1$2SIZES, INDEX,/;
        s/("(?:dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|hash)"):\d+/$1:N/g;
        s/^("(?:DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex|Hash)" : )\d+$/$1N/;
        s/^(\S+:\d+, )\d+, (\d+)$/$1 . "HASH, " . ($2 > $base ? "+" . ($2 - $base) : $2)/e;
        s/\b(etcdctl|quoratectl)\b/CTL/g;
        s/^(CTL version: ).*/$1V/;
    '
}

# Tables of changing numbers keep their shape only: every cell becomes a letter for its kind.
normalise_table() {
    perl -Mutf8 -CSD -pe 's/─+/─/g; s/\d[\d.]*(ns|µs|ms|s| [kMG]?B|%)?(?= )/N/g; s/ +/ /g'
}

passed=0 failed=0 number=0
declare -a lines=()

# case ARGUMENTS...: standard input is the file "$work/stdin" if it exists.
case_() {
    number=$((number + 1))
    local ctl=$1 out="$work/$2.$number" input=/dev/null
    shift 2
    [ -e "$work/stdin" ] && input=$work/stdin
    "$ctl" "$@" <"$input" >"$out.raw" 2>"$out.stderr"
    local code=$?
    rm -f "$work/stdin"
    case " $* " in
        # Compared as bytes among the plain reads, where both clients see the same revision.
        *" protobuf "*) : >"$out" ;;
        *" table "*) normalise <"$out.raw" | normalise_table >"$out" ;;
        *) normalise <"$out.raw" >"$out" ;;
    esac
    echo "exit $code" >>"$out"
    # Log lines and usage texts are etcdctl's own; it reports a conflict in a log line.
    grep -m 1 '^Error: ' "$out.stderr" | grep -v 'conflicting environment variable' | normalise >>"$out"
    lines[number]="$*"
}

# All cases of one round, for the client in $1 with the label $2.
round() {
    local ctl=$1 label=$2
    number=0
    "$ctl" del "" --prefix >/dev/null
    base=$("$ctl" get x -w fields | sed -n 's/^"Revision" : //p')
    run() { case_ "$ctl" "$label" "$@"; }
    given() { printf "$1" >"$work/stdin"; }

    # Writes.
    run put foo bar
    run put foo bar2 --prev-kv
    run put foo bar3 --prev-kv -w json
    run put foo bar4 --prev-kv -w fields
    run put foo bar5 --prev-kv --hex
    run put foo bar6 -w json
    run put foo bar6 -w fields --hex
    run put foo bar7 -w protobuf --prev-kv
    run put foo bar8 -w table
    given 'from stdin\n'; run put stdin
    run put stdin
    run put
    run put a b c
    run put -- dash -1
    run put dash -- -2
    run put dash -1
    run put "" v
    run put missing --ignore-value
    run put foo --ignore-value --prev-kv
    run put foo v --ignore-value
    run put foo v --ignore-lease
    run put foo v --lease 1234
    run put foo v --lease zz
    run put foo v --lease 12 --ignore-lease
    run put foo "" --prev-kv=true
    run put foo v --prev-kv=maybe
    run put foo v --bogus
    run put $'bin\xff\x01' $'v\xfe\n"\\' -w fields --prev-kv
    run put $'bin\xff\x01' $'<&>\xe2\x80\xa8\xc2\xad\xcc\x81\xf0\x9f\x98\x80' -w fields --prev-kv
    for key in k1 k2 k3 k4 kz l1; do run put "$key" "v-$key"; done
    run put k2 zzz
    run put k1 mmm
    head -c 3000000 /dev/zero | tr '\0' x >"$work/stdin"; run put big
    head -c 1800000 /dev/zero | tr '\0' x >"$work/stdin"; run put big

    # Reads.
    run get foo
    run get missing
    run get missing -w json
    run get missing -w fields
    run get foo -w json
    run get foo -w fields
    run get foo -w fields --hex
    run get foo -w json --hex
    run get foo -w protobuf
    run get foo -w table
    run get foo -w bogus
    run get foo --hex
    run get $'bin\xff\x01'
    run get $'bin\xff\x01' --hex
    run get $'bin\xff\x01' -w json
    run get $'bin\xff\x01' -w fields
    run get
    run get ""
    run get "" --prefix --keys-only
    run get "" --from-key --keys-only
    run get k1 k3
    run get k1 k3 ignored
    run get k3 k1
    run get k --prefix
    run get k --prefix --print-value-only
    run get k --prefix --print-value-only --hex
    run get k --prefix --print-value-only -w json
    run get k --prefix --keys-only
    run get k --prefix --keys-only -w json
    run get k --prefix --keys-only -w fields
    run get k --prefix --count-only
    run get k --prefix --count-only -w json
    run get k --prefix --count-only -w fields
    run get k --prefix --count-only --keys-only
    run get k --prefix --limit 2
    run get k --prefix --limit 2 -w json
    run get k --prefix --limit=2 -w=fields
    run get k --prefix --limit -1
    run get k --prefix --limit 0x2
    run get k --prefix --limit x
    run get k --prefix --limit
    run get k --prefix --order descend
    run get k --prefix --order ASCEND --limit 3
    run get k --prefix --order descend --limit 2
    run get k --prefix --order up
    run get k --prefix --sort-by value
    run get k --prefix --sort-by VALUE --order DESCEND
    run get k --prefix --sort-by modify --order ascend
    run get k --prefix --sort-by create --order descend --keys-only
    run get k --prefix --sort-by version
    run get k --prefix --sort-by nothing
    run get k1 --from-key --limit 3
    run get k --prefix --from-key
    run get k l --prefix
    run get k1 --consistency s
    run get k1 --consistency l
    run get k1 --consistency x
    run get k1 --rev 1000000
    run get k1 --rev 1000000 -w table
    run get k1 --rev -1
    run get k --prefix --rev $((base + 20)) -w json
    run get k --prefix --min-mod-rev $((base + 22)) -w json
    run get k --prefix --max-mod-rev $((base + 22)) -w json
    run get k --prefix --min-create-rev $((base + 20)) -w fields
    run get k --prefix --max-create-rev $((base + 20)) -w fields
    run get k --prefix --min-mod-rev 5 --max-mod-rev 3
    run get k --prefix --min-create-rev 5 --max-create-rev 3
    run get k --prefix --stream
    run get k --prefix --stream -w json
    run get k --prefix --stream --order descend
    run get k --prefix --prefix=false
    run get k1 --command-timeout 5
    run get k1 --command-timeout 1m0.5s
    run get k1 --dial-timeout=x

    # Transactions.
    given 'mod("k1") > "0"\n\nput k1 "a b"\nget k1\ndel nothing\n\nget k1\n\n'; run txn
    given 'mod("k1") > "0"\n\nput k1 "a b"\nget k1\ndel nothing\n\nget k1\n\n'; run txn -w json
    given 'mod("k1") > "0"\n\nput k1 "a b"\nget k1\ndel nothing\n\nget k1\n\n'; run txn -w fields
    given 'mod("k1") > "0"\n\nput k1 "a b"\nget k1\ndel nothing\n\nget k1\n\n'; run txn -w protobuf
    given 'mod("k1") > "0"\n\nput k1 x\n\n\n'; run txn -w table
    given 'mod("k1") > "0"\n\nget k1\n\n\n'; run txn -i --hex
    given 'ver("k1") > "9999"\n\nput k1 x\n\nget --prefix k --limit 2\nput k2 x --prev-kv\n\n'; run txn
    given 'val("k1") = "x"\nvalue("k1") != "b"\nc("k1") > "1"\ncreate("k1") != "1"\nm("k1") > "3"\nversion("k1") > "3"\n\nget k1\n\n\n'; run txn
    given 'val(`k1`) = "\\x78"\n\nget `k1`\n\nget "k\\u0031"\n\n'; run txn
    for text in 'mod(k) = "0"' 'mod("k") = 0' 'mod("k")="0"' 'mod("k")= "0"' 'mod("k") ="0"' \
        'mod( "k" ) = "0"' 'mod( "k")  =   "0" rest' 'mod("k"' 'mod' 'foo("k") = "0"' 'mod ("k") = "0"' \
        'mod("k") = "x"' 'mod("k") > "99999999999999999999"' 'mod("k") > "-1"' 'mod("k") > "+1"' \
        "mod('k') > \"1\"" 'val("\\q") = "x"' 'val("k") =' 'val("") = "a"' 'val("nothing") = ""'; do
        given "$text\n\nget k1\n\nget k2\n\n"; run txn
    done
    for text in 'put' 'put k' 'foo k' 'get k1 --bogus' 'get k1 -w json' 'get k1 --hex' \
        "put k 'single q'" 'put k "es\\"c\\n\\u00e9"' 'put k a"b"c' 'put k "a"b' 'put k \\"a' \
        'put k "open' "put k 'open" "put k a'b' c" 'put k ""' "put k ''" 'put k "\\q"' 'g k1' \
        'delete k1' 'get ""' 'put "" v' 'get k1 --order x' 'get k1 --prefix --from-key' \
        'get k1 --limit x' 'get k --prefix --count-only' 'get --print-value-only k1' \
        'get k --prefix --keys-only' 'put k v --lease=1' 'get k1 --rev 1000000' 'del --prefix k4' \
        'del k1 k2 --range --prev-kv' 'put k 1\nput k 2' 'del k --prefix\nput k1 x' \
        'put k2 v --prev-kv\nput k3 v' '--prefix get k'; do
        given "\n$text\nget k\n\n\n"; run txn
    done
    given '\r\n get k1 \r\n\t\n\n'; run txn
    given '\n\n\n'; run txn
    given '\n\n'; run txn
    given ''; run txn
    given 'mod("k") = "0"'; run txn
    given '\n\n\n'; run txn argument
    given '\n\n\n'; run txn -w bogus

    # Deletes.
    run put d1 1
    run put d2 2
    run put d3 3
    run put e1 4
    run del d1 --prev-kv
    run del d1 --prev-kv
    run del d1 -w json
    run del d --prefix --prev-kv -w json
    run put d1 1
    run put d2 2
    run del d1 d3 --range --prev-kv -w fields
    run put d1 1
    run del d1 --prev-kv --hex
    run put d1 1
    run del d1 -w protobuf --prev-kv
    run put d1 1
    run del d1 -w table
    run del zz1 zz2
    run del zz --from-key
    run del a b c --range
    run del a b --prefix
    run del a --prefix --from-key
    run del
    run del ""
    run del k1 k9 --range
    run del "" --prefix

    # Compaction; the second of each pair is refused.
    run put foo bar
    run compaction $((base + 5))
    run compaction $((base + 5))
    run compaction $((base + 6)) --physical
    run compaction $((base + 7)) -w json
    run compact $((base + 8))
    run compaction 1000000
    run compaction
    run compaction x
    run compaction 1 2
    run compaction 0
    run compaction -- -5
    run compaction $((base + 9)) -w bogus
    run get foo --rev $((base + 3))

    # Members and endpoints.
    local format
    for format in simple json fields table protobuf bogus; do
        run member list -w $format
        run endpoint status -w $format
        run endpoint health -w $format
        run endpoint hashkv -w $format
    done
    run member list --hex -w json
    run member list --hex -w fields
    run member list --consistency s ignored

    # Leadership: from the only member to itself, and to nobody.
    local member
    member=$("$ctl" member list | cut -d, -f1)
    for format in simple json fields table protobuf; do run move-leader "$member" -w $format; done
    run move-leader
    run move-leader "$member" "$member"
    run move-leader zz
    run move-leader 0x7
    run move-leader +7
    run move-leader 12345678901234567
    run move-leader 7
    run move-leader "$member" --endpoints "$dead" --command-timeout 300ms
    run endpoint status --hex -w fields
    run endpoint hashkv --hex -w fields
    run endpoint hashkv --rev 1000000
    run endpoint hashkv --rev 1
    run endpoint status --cluster ignored
    run endpoint health --cluster
    run endpoint hashkv --cluster -w json
    run endpoint --cluster status -w json
    run endpoint status --cluster=false
    run endp st

    # Global flags, variables and failover.
    run version
    run version -w bogus extra
    run get foo --endpoints "$endpoint"
    ETCDCTL_WRITE_OUT=json run get foo
    ETCDCTL_WRITE_OUT=json run get foo -w simple
    ETCDCTL_HEX=true run get foo
    ETCDCTL_HEX= run get foo
    ETCDCTL_DIAL_TIMEOUT=x run get foo
    ETCDCTL_UNKNOWN=x run get foo
    ETCDCTL_LIMIT=x run get foo
    run get foo --user root:secret
    run get foo --user root --password secret
    run get foo --cert ""
    run get foo --max-recv-bytes 1000 --max-request-bytes 500
    run put foo 123456789 --max-request-bytes 5
    run bogus
    run -w json get foo
    run get -wjson foo
    local kept=$ETCDCTL_ENDPOINTS
    unset ETCDCTL_ENDPOINTS
    run get foo --endpoints "http://$endpoint"
    run get foo --endpoints " $endpoint"
    run get foo --endpoints "$dead,$endpoint" --command-timeout 3s
    run put foo x --endpoints "$dead" --endpoints "$endpoint" --command-timeout 3s
    run get foo --endpoints ""
    run get foo --endpoints "$dead" --command-timeout 300ms
    run put foo x --endpoints "$dead" --command-timeout 300ms
    for format in simple json fields table; do
        run endpoint status --endpoints "$dead,$endpoint" --command-timeout 300ms -w $format
        run endpoint status --endpoints "$dead" --command-timeout 300ms -w $format
        run endpoint health --endpoints "$dead,$endpoint" --command-timeout 300ms -w $format
        run endpoint hashkv --endpoints "$dead,$endpoint" --command-timeout 300ms -w $format
    done
    export ETCDCTL_ENDPOINTS=$kept
}

# Reads that both clients make of the same state, one after the other: nothing is normalised.
plain_reads() {
    local arguments format
    "$etcdctl" put same/foo bar >/dev/null
    "$etcdctl" put same/foo $'<&>\xe2\x80\xa8 "\\ \t\xff\x7f\xc2\xad\xcc\x81\xe2\x82\xac\xf0\x9f\x98\x80' >/dev/null
    "$etcdctl" put same/empty "" >/dev/null
    for format in simple json fields protobuf; do
        for arguments in "get same/foo" "get same/ --prefix" "get same/ --prefix --hex" \
            "get same/ --prefix --limit 1" "get missing" "get same/ --prefix --keys-only" \
            "get same/ --prefix --stream" "get same/ --prefix --sort-by version --order descend" \
            "member list" "member list --hex" "endpoint status" "endpoint status --hex" \
            "endpoint status --cluster" "endpoint hashkv" "endpoint hashkv --hex" \
            "endpoint hashkv --cluster" "put --ignore-value missing" "compaction 1000000"; do
            plain "$arguments -w $format"
        done
    done
    plain "member list -w table"
    plain "endpoint status -w table"
    plain "endpoint status --cluster -w table"
    plain "endpoint hashkv -w table"
    printf '\n\n\n' >"$work/stdin"; plain "txn -w json"
    printf '\nget same/ --prefix\nget missing\n\n\n' >"$work/stdin"
    for format in simple json fields protobuf; do plain "txn -w $format"; done
    rm "$work/stdin"
}

plain() {
    local input=/dev/null
    [ -e "$work/stdin" ] && input=$work/stdin
    total=$((total + 1))
    # shellcheck disable=SC2086 # the arguments are words
    "$etcdctl" $1 <"$input" >"$work/want" 2>/dev/null
    echo "exit $?" >>"$work/want"
    # shellcheck disable=SC2086
    "$quoratectl" $1 <"$input" >"$work/have" 2>/dev/null
    echo "exit $?" >>"$work/have"
    lines[total]="$1 (plain)"
    cp "$work/want" "$work/want.$total"
    cp "$work/have" "$work/have.$total"
}

round "$etcdctl" want
total=$number
round "$quoratectl" have
plain_reads
for ((number = 1; number <= total; number++)); do
    if diff -u "$work/want.$number" "$work/have.$number" >"$work/diff"; then
        passed=$((passed + 1))
        [ -n "${CTL_COMPARE_VERBOSE:-}" ] && echo "same: ${lines[number]}"
    else
        failed=$((failed + 1))
        echo "DIFFERENT: ${lines[number]}"
        tail -n +3 "$work/diff" | sed 's/^/    /' | cut -c 1-400
    fi
done
echo "$passed of $total command lines are the same"
[ "$failed" -eq 0 ]
