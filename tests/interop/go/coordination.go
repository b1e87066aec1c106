package main

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// Watch, lease, and the recipes of the concurrency package for locks and elections.
func (r *run) coordination() {
	r.watches()
	r.leases()
	r.locks()
	r.elections()
	must(r.client.Delete(r.ctx, r.prefix, clientv3.WithPrefix()))
}

func (r *run) watches() {
	a, b := r.prefix+"wa", r.prefix+"wb"
	first := must(r.client.Put(r.ctx, a, "one")).Header.Revision
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	live := r.client.Watch(ctx, b, clientv3.WithCreatedNotify())
	created := <-live
	r.check(created.Created && created.Header.Revision == first, "created: %v", created)
	must(r.client.Put(r.ctx, a, "two"))
	must(r.client.Put(r.ctx, b, "three"))
	must(r.client.Delete(r.ctx, a))
	history := r.client.Watch(ctx, r.prefix+"w", clientv3.WithPrefix(), clientv3.WithRev(first),
		clientv3.WithPrevKV())
	var events []*clientv3.Event
	for len(events) < 4 {
		events = append(events, (<-history).Events...)
	}
	r.check(events[0].IsCreate() && events[1].IsModify(), "history: %v", events)
	r.check(string(events[1].PrevKv.Value) == "one", "prev_kv: %v", events[1])
	r.check(events[3].Type == clientv3.EventTypeDelete && string(events[3].PrevKv.Value) == "two" &&
		events[3].Kv.ModRevision == first+3, "the delete: %v", events[3])
	seen := (<-live).Events
	r.check(len(seen) == 1 && string(seen[0].Kv.Value) == "three", "live: %v", seen)
	deletes := r.client.Watch(ctx, r.prefix+"w", clientv3.WithPrefix(), clientv3.WithRev(first),
		clientv3.WithFilterPut())
	only := (<-deletes).Events
	r.check(len(only) == 1 && string(only[0].Kv.Key) == a, "filtered: %v", only)
	must(r.client.Compact(r.ctx, first+2))
	late := <-r.client.Watch(ctx, a, clientv3.WithRev(first))
	r.check(errors.Is(late.Err(), rpctypes.ErrCompacted) && late.CompactRevision == first+2,
		"a compacted watch: %v", late)
}

func (r *run) leases() {
	key := r.prefix + "leased"
	lease := must(r.client.Grant(r.ctx, 60))
	must(r.client.Put(r.ctx, key, "x", clientv3.WithLease(lease.ID)))
	left := must(r.client.TimeToLive(r.ctx, lease.ID, clientv3.WithAttachedKeys()))
	r.check(left.TTL > 50 && left.GrantedTTL == 60 && len(left.Keys) == 1, "time to live: %v", left)
	renewed := must(r.client.KeepAliveOnce(r.ctx, lease.ID))
	r.check(renewed.TTL == 60, "a renewal: %v", renewed)
	renewals := must(r.client.KeepAlive(r.ctx, lease.ID))
	r.check((<-renewals).TTL == 60, "a stream of renewals")
	must(r.client.Revoke(r.ctx, lease.ID))
	gone := must(r.client.Get(r.ctx, key))
	r.check(gone.Count == 0, "a revoked key: %v", gone)
	_, err := r.client.Revoke(r.ctx, lease.ID)
	r.check(errors.Is(err, rpctypes.ErrLeaseNotFound), "revoked twice: %v", err)
	_, err = r.client.KeepAliveOnce(r.ctx, lease.ID)
	r.check(errors.Is(err, rpctypes.ErrLeaseNotFound), "renewed too late: %v", err)

	// Two keys of a lease that nobody renews go in one revision.
	short := must(r.client.Grant(r.ctx, 1))
	events := r.client.Watch(r.ctx, r.prefix+"short", clientv3.WithPrefix(), clientv3.WithFilterPut())
	must(r.client.Put(r.ctx, r.prefix+"short2", "x", clientv3.WithLease(short.ID)))
	must(r.client.Put(r.ctx, r.prefix+"short1", "x", clientv3.WithLease(short.ID)))
	expired := (<-events).Events
	r.check(len(expired) == 2 && expired[0].Kv.ModRevision == expired[1].Kv.ModRevision &&
		string(expired[0].Kv.Key) < string(expired[1].Kv.Key), "expired: %v", expired)
}

func (r *run) session() *concurrency.Session {
	return must(concurrency.NewSession(r.client, concurrency.WithTTL(20)))
}

func (r *run) locks() {
	one, two := r.session(), r.session()
	defer one.Close()
	defer two.Close()
	first, second := concurrency.NewMutex(one, r.prefix+"L"), concurrency.NewMutex(two, r.prefix+"L")
	must(0, first.Lock(r.ctx))
	r.check(errors.Is(second.TryLock(r.ctx), concurrency.ErrLocked), "two holders")
	got := make(chan error, 1)
	go func() { got <- second.Lock(r.ctx) }()
	select {
	case err := <-got:
		r.check(false, "locked while it was held: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	must(0, first.Unlock(r.ctx))
	must(0, <-got)
	token := must(r.client.Get(r.ctx, second.Key())).Kvs[0].CreateRevision
	owner := must(r.client.Txn(r.ctx).If(second.IsOwner()).Commit())
	r.check(owner.Succeeded && token > 0, "the owner: %v", owner)
	must(0, second.Unlock(r.ctx))
}

func (r *run) elections() {
	one, two := r.session(), r.session()
	defer two.Close()
	first := concurrency.NewElection(one, r.prefix+"E")
	second := concurrency.NewElection(two, r.prefix+"E")
	must(0, first.Campaign(r.ctx, "one"))
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	seen := second.Observe(ctx)
	r.check(string((<-seen).Kvs[0].Value) == "one", "the first leader")
	must(0, first.Proclaim(r.ctx, "one again"))
	r.check(string((<-seen).Kvs[0].Value) == "one again", "a proclamation")
	won := make(chan error, 1)
	go func() { won <- second.Campaign(r.ctx, "two") }()
	token := first.Rev()
	// The end of the session is the end of its leadership.
	must(0, one.Close())
	must(0, <-won)
	r.check(second.Rev() > token, "tokens: %d after %d", second.Rev(), token)
	leader := must(second.Leader(r.ctx))
	r.check(string(leader.Kvs[0].Value) == "two", "the next leader: %v", leader)
	r.check(string((<-seen).Kvs[0].Value) == "two", "the next leader, observed")
	must(0, second.Resign(r.ctx))
	_, err := second.Leader(r.ctx)
	r.check(errors.Is(err, concurrency.ErrElectionNoLeader), "after all: %v", err)
}
