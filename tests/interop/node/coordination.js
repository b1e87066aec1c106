// Watch, lease, lock and election of the Node client etcd3: node coordination.js http://HOST:PORT
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { Etcd3, EtcdLockFailedError } = require('etcd3');

async function watches(client, prefix) {
  const [a, b] = [`${prefix}wa`, `${prefix}wb`];
  const first = Number((await client.put(a).value('one')).header.revision);
  await client.put(a).value('two');
  await client.put(b).value('three');
  await client.delete().key(a).exec();
  const history = await client
    .watch()
    .prefix(`${prefix}w`)
    .startRevision(String(first))
    .withPreviousKV()
    .create();
  const seen = [];
  await new Promise((resolve) => {
    history.on('data', ({ events }) => {
      seen.push(...events);
      if (seen.length >= 4) resolve();
    });
  });
  await history.cancel();
  assert.deepEqual(seen.map((event) => event.kv.key.toString()), [a, a, b, a]);
  assert.deepEqual(seen.map((event) => Number(event.kv.mod_revision) - first), [0, 1, 2, 3]);
  assert.equal(seen[3].type, 'Delete');
  assert.equal(seen[3].prev_kv.value.toString(), 'two');

  const live = await client.watch().key(b).create();
  const put = once(live, 'put');
  await client.put(b).value('four');
  assert.equal((await put)[0].value.toString(), 'four');
  await live.cancel();
}

async function leases(client, prefix) {
  const key = `${prefix}leased`;
  const lease = client.lease(60);
  const id = await lease.grant();
  await lease.put(key).value('x');
  const answer = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  assert.equal(Number(answer.grantedTTL), 60);
  assert.deepEqual(answer.keys.map(String), [key]);
  assert.equal(Number((await lease.keepaliveOnce()).TTL), 60);
  await lease.revoke();
  assert.equal(await client.get(key).string(), null);

  const watcher = await client.watch().key(`${prefix}short`).create();
  const gone = once(watcher, 'delete');
  const short = client.lease(1, { autoKeepAlive: false });
  await short.put(`${prefix}short`).value('x');
  await gone;
  await watcher.cancel();
  short.release();
}

async function locks(client, prefix) {
  const name = `${prefix}lock`;
  const held = await client.lock(name).ttl(30).acquire();
  await assert.rejects(client.lock(name).ttl(30).acquire(), EtcdLockFailedError);
  await held.release();
  let ran = false;
  await client.lock(name).do(async () => { ran = true; });
  assert.ok(ran);
}

async function elections(client, prefix) {
  const election = client.election(`${prefix}election`, 30);
  const one = election.campaign('one');
  await once(one, 'elected');
  assert.equal(await election.leader(), 'one');
  const observer = await election.observe();
  const two = election.campaign('two');
  const won = once(two, 'elected');
  const change = once(observer, 'change');
  await one.resign();
  await won;
  await change;
  assert.equal(await election.leader(), 'two');
  await observer.cancel();
  await two.resign();
}

async function main() {
  const client = new Etcd3({ hosts: process.argv[2] });
  const prefix = `interop/node/${process.pid}/`;
  await watches(client, prefix);
  await leases(client, prefix);
  await locks(client, prefix);
  await elections(client, prefix);
  await client.delete().prefix(prefix).exec();
  client.close();
  console.log('node etcd3: coordination as expected');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
