//! Watch, lease, lock and election of the Rust client etcd-client: coordination http://HOST:PORT

use std::{error::Error, time::Duration};

use etcd_client::{
    Client, DeleteOptions, EventType, GetOptions, LockOptions, PutOptions, ResignOptions,
    WatchOptions,
};
use tokio::time::timeout;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

async fn watch(client: &mut Client, prefix: &str) -> Result<()> {
    let (a, b) = (format!("{prefix}a"), format!("{prefix}b"));
    let first = client.put(a.as_str(), "one", None).await?.header().ok_or("header")?.revision();
    let options = WatchOptions::new().with_prefix().with_start_revision(first).with_prev_key();
    let mut stream = client.watch(prefix, Some(options)).await?;
    client.put(a.as_str(), "two", None).await?;
    client.put(b.as_str(), "three", None).await?;
    client.delete(a.as_str(), None).await?;
    let (mut seen, mut watch_id) = (Vec::new(), 0);
    while seen.len() < 4 {
        let response = stream.message().await?.ok_or("the stream has ended")?;
        watch_id = response.watch_id();
        for event in response.events() {
            let kv = event.kv().ok_or("no pair")?;
            let old = event.prev_kv().map_or("", |kv| kv.value_str().unwrap_or("?"));
            let deleted = event.event_type() == EventType::Delete;
            seen.push((kv.key_str()?.to_owned(), deleted, old.to_owned(), kv.mod_revision()));
        }
    }
    let event = |key: &String, deleted, old: &str, after| {
        (key.clone(), deleted, old.to_owned(), first + after)
    };
    let expected = [
        event(&a, false, "", 0),
        event(&a, false, "one", 1),
        event(&b, false, "", 2),
        event(&a, true, "two", 3),
    ];
    assert_eq!(seen, expected);
    stream.cancel(watch_id).await?;
    let last = stream.message().await?.ok_or("no answer to the cancelation")?;
    assert!(last.canceled());

    // What was compacted cannot be watched.
    client.compact(first + 2, None).await?;
    let options = WatchOptions::new().with_start_revision(first);
    let mut stream = client.watch(a.as_str(), Some(options)).await?;
    let mut refused = stream.message().await?.ok_or("no answer")?;
    if refused.created() && !refused.canceled() {
        refused = stream.message().await?.ok_or("no answer")?;
    }
    assert!(refused.canceled() && refused.compact_revision() == first + 2);
    Ok(())
}

async fn leases(client: &mut Client, prefix: &str) -> Result<()> {
    let key = format!("{prefix}leased");
    let lease = client.lease_grant(60, None).await?;
    assert_eq!(lease.ttl(), 60);
    let id = lease.id();
    client.put(key.as_str(), "x", Some(PutOptions::new().with_lease(id))).await?;
    let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    let left = client.lease_time_to_live(id, Some(options)).await?;
    assert!(left.ttl() > 50 && left.granted_ttl() == 60);
    assert_eq!(left.keys(), [key.as_bytes()]);
    let (mut keeper, mut answers) = client.lease_keep_alive(id).await?;
    keeper.keep_alive().await?;
    assert_eq!(answers.message().await?.ok_or("no renewal")?.ttl(), 60);
    assert!(client.leases().await?.leases().iter().any(|lease| lease.id() == id));
    client.lease_revoke(id).await?;
    keeper.keep_alive().await?;
    assert_eq!(answers.message().await?.ok_or("no renewal")?.ttl(), 0);
    assert_eq!(client.lease_time_to_live(id, None).await?.ttl(), -1);
    assert_eq!(client.get(key, None).await?.count(), 0);

    // A lease that nobody renews takes its keys along.
    let id = client.lease_grant(1, None).await?.id();
    let gone = format!("{prefix}expiring");
    client.put(gone.as_str(), "x", Some(PutOptions::new().with_lease(id))).await?;
    let mut stream = client.watch(gone, None).await?;
    loop {
        let response = stream.message().await?.ok_or("the stream has ended")?;
        // The first response may only say that the watcher was created.
        if let Some(event) = response.events().first() {
            assert_eq!(event.event_type(), EventType::Delete);
            break;
        }
    }
    Ok(())
}

async fn lock(client: &mut Client, prefix: &str) -> Result<()> {
    let name = format!("{prefix}lock");
    let held = client.lock(name.as_str(), None).await?;
    assert!(held.key().starts_with(format!("{name}/").as_bytes()));
    let lease = client.lease_grant(30, None).await?.id();
    let mut other = client.clone();
    let wanted = LockOptions::new().with_lease(lease);
    let mut waiting = std::pin::pin!(other.lock(name.as_str(), Some(wanted)));
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "two holders");
    client.unlock(held.key()).await?;
    let next = waiting.await?;
    assert_eq!(next.key(), format!("{name}/{lease:x}").as_bytes());
    client.unlock(next.key()).await?;
    client.lease_revoke(lease).await?;
    Ok(())
}

async fn election(client: &mut Client, prefix: &str) -> Result<()> {
    let name = format!("{prefix}election");
    let (one, two) =
        (client.lease_grant(30, None).await?.id(), client.lease_grant(30, None).await?.id());
    let first = client.campaign(name.as_str(), "one", one).await?;
    let first = first.leader().ok_or("no key")?.clone();
    let mut observer = client.observe(name.as_str()).await?;
    let mut other = client.clone();
    let mut waiting = std::pin::pin!(other.campaign(name.as_str(), "two", two));
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "two leaders");
    let leader = client.leader(name.as_str()).await?;
    assert_eq!(leader.kv().ok_or("no leader")?.value(), b"one");
    let resign = ResignOptions::new().with_leader(first.clone());
    client.resign(Some(resign)).await?;
    let second = waiting.await?;
    let second = second.leader().ok_or("no key")?.clone();
    assert!(second.rev() > first.rev(), "the token must grow");
    let mut seen = Vec::new();
    while seen.last().is_none_or(|value| value != b"two") {
        let news = observer.message().await?.ok_or("the observer has ended")?;
        seen.push(news.kv().ok_or("no leader")?.value().to_vec());
    }
    assert_eq!(seen, [b"one", b"two"]);
    client.lease_revoke(one).await?;
    client.lease_revoke(two).await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let endpoint = std::env::args().nth(1).ok_or("usage: coordination http://HOST:PORT")?;
    let mut client = Client::connect([endpoint], None).await?;
    let prefix = format!("interop/rust/{}/", std::process::id());
    watch(&mut client, &prefix).await?;
    leases(&mut client, &prefix).await?;
    lock(&mut client, &prefix).await?;
    election(&mut client, &prefix).await?;
    client.delete(prefix.as_str(), Some(DeleteOptions::new().with_prefix())).await?;
    let left = client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
    assert_eq!(left.count(), 0);
    println!("rust etcd-client: all as expected");
    Ok(())
}
