// The calls of the Go client clientv3, against one endpoint: interop http://HOST:PORT
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// A run against one endpoint.
type run struct {
	client   *clientv3.Client
	ctx      context.Context
	prefix   string
	failures int
}

// Counts and reports a thing that is not as it should be.
func (r *run) check(ok bool, format string, args ...any) {
	if !ok {
		r.failures++
		fmt.Printf("clientv3: "+format+"\n", args...)
	}
}

// Ends the run on an error that nothing should cause.
func must[T any](answer T, err error) T {
	if err != nil {
		fmt.Println("clientv3:", err)
		os.Exit(1)
	}
	return answer
}

func (r *run) oneKey() {
	a := r.prefix + "a"
	empty := must(r.client.Get(r.ctx, a))
	r.check(len(empty.Kvs) == 0 && empty.Count == 0, "a missing key: %v", empty)
	first := must(r.client.Put(r.ctx, a, "one")).Header.Revision
	second := must(r.client.Put(r.ctx, a, "two", clientv3.WithPrevKV()))
	r.check(string(second.PrevKv.Value) == "one", "prev_kv: %v", second)
	r.check(second.Header.Revision == first+1, "the second revision: %v", second)
	got := must(r.client.Get(r.ctx, a)).Kvs[0]
	r.check(got.CreateRevision == first && got.ModRevision == first+1 && got.Version == 2, "%v", got)
	old := must(r.client.Get(r.ctx, a, clientv3.WithRev(first)))
	r.check(string(old.Kvs[0].Value) == "one", "an old revision: %v", old)
	r.check(old.Header.Revision == first+1, "the header of an old read: %v", old)
	serial := must(r.client.Get(r.ctx, a, clientv3.WithSerializable()))
	r.check(string(serial.Kvs[0].Value) == "two", "serializable: %v", serial)
}

func (r *run) intervals() {
	b := r.prefix + "b"
	must(r.client.Put(r.ctx, b, "\x00\xff"))
	all := must(r.client.Get(r.ctx, r.prefix, clientv3.WithPrefix()))
	r.check(all.Count == 2 && !all.More, "a prefix: %v", all)
	one := must(r.client.Get(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithLimit(1)))
	r.check(len(one.Kvs) == 1 && one.More && one.Count == 2, "a limit: %v", one)
	last := must(r.client.Get(r.ctx, r.prefix, clientv3.WithLastKey()...))
	r.check(string(last.Kvs[0].Key) == b, "the last key: %v", last)
	count := must(r.client.Get(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly()))
	r.check(count.Count == 2 && len(count.Kvs) == 0, "count only: %v", count)
	keys := must(r.client.Get(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly()))
	r.check(len(keys.Kvs) == 2 && len(keys.Kvs[1].Value) == 0, "keys only: %v", keys)
	stream := must(r.client.GetStream(r.ctx, r.prefix, clientv3.WithPrefix()))
	streamed := must(clientv3.GetStreamToGetResponse(stream))
	r.check(streamed.Count == 2 && len(streamed.Kvs) == 2, "a stream: %v", streamed)
}

func (r *run) transactions() {
	a, missing := r.prefix+"a", r.prefix+"missing"
	swapped := must(r.client.Txn(r.ctx).
		If(clientv3.Compare(clientv3.Value(a), "=", "two")).
		Then(clientv3.OpPut(a, "three"), clientv3.OpGet(a)).
		Else(clientv3.OpDelete(a)).
		Commit())
	r.check(swapped.Succeeded, "a swap: %v", swapped)
	value := string(swapped.Responses[1].GetResponseRange().Kvs[0].Value)
	r.check(value == "three", "a read after a write: %v", value)
	refused := must(r.client.Txn(r.ctx).
		If(clientv3.Compare(clientv3.CreateRevision(missing), ">", 0)).
		Then(clientv3.OpPut(a, "never")).
		Else(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(a)}, nil)).
		Commit())
	inner := refused.Responses[0].GetResponseTxn()
	value = string(inner.Responses[0].GetResponseRange().Kvs[0].Value)
	r.check(!refused.Succeeded && value == "three", "a nested read: %v", refused)
	_, err := r.client.Txn(r.ctx).Then(clientv3.OpPut(a, "1"), clientv3.OpPut(a, "2")).Commit()
	r.check(errors.Is(err, rpctypes.ErrDuplicateKey), "a key twice: %v", err)
}

func (r *run) refusals() {
	a := r.prefix + "a"
	_, err := r.client.Put(r.ctx, "", "x")
	r.check(errors.Is(err, rpctypes.ErrEmptyKey), "an empty key: %v", err)
	_, err = r.client.Put(r.ctx, a, "x", clientv3.WithLease(4242424242))
	r.check(errors.Is(err, rpctypes.ErrLeaseNotFound), "an unknown lease: %v", err)
	_, err = r.client.Put(r.ctx, r.prefix+"missing", "", clientv3.WithIgnoreValue())
	r.check(errors.Is(err, rpctypes.ErrKeyNotFound), "ignore_value: %v", err)
	revision := must(r.client.Put(r.ctx, a, "four")).Header.Revision
	must(r.client.Compact(r.ctx, revision, clientv3.WithCompactPhysical()))
	_, err = r.client.Compact(r.ctx, revision)
	r.check(errors.Is(err, rpctypes.ErrCompacted), "compacted twice: %v", err)
	_, err = r.client.Get(r.ctx, a, clientv3.WithRev(revision-1))
	r.check(errors.Is(err, rpctypes.ErrCompacted), "a compacted read: %v", err)
	_, err = r.client.Get(r.ctx, a, clientv3.WithRev(revision+1000000))
	r.check(errors.Is(err, rpctypes.ErrFutureRev), "a future read: %v", err)
	gone := must(r.client.Delete(r.ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV()))
	r.check(gone.Deleted == 2 && len(gone.PrevKvs) == 2, "a deleted prefix: %v", gone)
}

func main() {
	endpoint := os.Args[1]
	client := must(clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 10 * time.Second,
		// The refusals below are meant; the client would log each.
		Logger: zap.NewNop(),
	}))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := run{client: client, ctx: ctx, prefix: fmt.Sprintf("interop/go/%d/", os.Getpid())}
	r.oneKey()
	r.intervals()
	r.transactions()
	r.refusals()
	if os.Getenv("INTEROP_COORDINATION") != "0" {
		r.coordination()
	}
	status := must(client.Status(ctx, endpoint))
	r.check(status.Version != "" && status.Leader != 0, "a status: %v", status)
	must(client.MemberList(ctx))
	if r.failures > 0 {
		fmt.Printf("clientv3: %d failures\n", r.failures)
		os.Exit(1)
	}
	fmt.Println("go clientv3: all as expected")
}
