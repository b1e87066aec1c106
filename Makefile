# `make verify` is the gate and never writes sources; `make fix` writes what a tool can.
.PHONY: verify fix cluster

verify:
	.ci/run format lint test docs deny

fix:
	cargo clippy --fix --allow-dirty --allow-staged --all-targets
	cargo fmt

# Three members on this machine until Ctrl-C.
cluster:
	deploy/local-cluster.sh
