//go:build tools

// Package oracle names the programs that etcd-oracle.sh builds, so that go.mod keeps them.
package oracle

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
