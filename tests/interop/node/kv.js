// The KV calls of the Node client etcd3, against one endpoint: node kv.js http://HOST:PORT
'use strict';

const assert = require('node:assert/strict');
const { Etcd3 } = require('etcd3');

async function oneKey(client, a) {
  assert.equal(await client.get(a).string(), null);
  const first = Number((await client.put(a).value('one')).header.revision);
  assert.equal(await client.get(a).string(), 'one');
  const answer = await client.put(a).value('two').getPrevious();
  assert.equal(answer.value.toString(), 'one');
  const { kvs } = await client.get(a).exec();
  assert.deepEqual(
    [kvs[0].create_revision, kvs[0].mod_revision, kvs[0].version].map(Number),
    [first, first + 1, 2],
  );
  assert.equal(await client.get(a).revision(String(first)).string(), 'one');
  assert.equal(await client.get(a).serializable(true).string(), 'two');
}

async function intervals(client, prefix, a, b) {
  await client.put(b).value(Buffer.from([0, 255]));
  assert.deepEqual(await client.getAll().prefix(prefix).keys(), [a, b]);
  assert.deepEqual(await client.getAll().prefix(prefix).sort('Key', 'Descend').keys(), [b, a]);
  assert.equal(await client.getAll().prefix(prefix).count(), 2);
  const limited = await client.getAll().prefix(prefix).limit(1).exec();
  assert.deepEqual([limited.more, Number(limited.count), limited.kvs.length], [true, 2, 1]);
  assert.deepEqual(await client.get(b).buffer(), Buffer.from([0, 255]));
}

async function transactions(client, a, missing) {
  const swapped = await client
    .if(a, 'Value', '==', 'two')
    .then(client.put(a).value('three'), client.get(a))
    .else(client.delete().key(a))
    .commit();
  assert.equal(swapped.succeeded, true);
  assert.equal(swapped.responses[1].response_range.kvs[0].value.toString(), 'three');
  const refused = await client
    .if(missing, 'Create', '>', 0)
    .then(client.put(a).value('never'))
    .else(client.get(a))
    .commit();
  assert.equal(refused.succeeded, false);
  assert.equal(refused.responses[0].response_range.kvs[0].value.toString(), 'three');
}

async function deletes(client, prefix, a) {
  const gone = await client.delete().key(a).getPrevious();
  assert.equal(gone[0].value.toString(), 'three');
  assert.equal(Number((await client.delete().key(a).exec()).deleted), 0);
  assert.equal(Number((await client.delete().prefix(prefix).exec()).deleted), 1);
}

async function refusals(client, a) {
  const revision = (await client.put(a).value('four')).header.revision;
  await client.kv.compact({ revision, physical: true });
  const isCompacted = /etcdserver: mvcc: required revision has been compacted/;
  await assert.rejects(client.kv.compact({ revision }), isCompacted);
  const before = String(Number(revision) - 1);
  await assert.rejects(client.get(a).revision(before).string(), isCompacted);
  const future = String(Number(revision) + 1000000);
  await assert.rejects(client.get(a).revision(future).string(), /required revision is a future/);
  await assert.rejects(client.put('').value('x').exec(), /etcdserver: key is not provided/);
  await client.delete().key(a).exec();
}

async function main() {
  const client = new Etcd3({ hosts: process.argv[2] });
  const prefix = `interop/node/${process.pid}/`;
  const [a, b, missing] = ['a', 'b', 'missing'].map((name) => prefix + name);
  await oneKey(client, a);
  await intervals(client, prefix, a, b);
  await transactions(client, a, missing);
  await deletes(client, prefix, a);
  await refusals(client, a);
  client.close();
  console.log('node etcd3: all as expected');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
