// The KV calls of the Java client jetcd, against one endpoint: java Kv.java http://HOST:PORT

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.CompactOption;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.PutOption;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

public final class Kv {
    private static final String PREFIX = "interop/java/" + ProcessHandle.current().pid() + "/";
    private static final ByteSequence A = bytes(PREFIX + "a");
    private static final ByteSequence B = bytes(PREFIX + "b");
    private static final ByteSequence MISSING = bytes(PREFIX + "missing");

    private final KV kv;

    private Kv(KV kv) {
        this.kv = kv;
    }

    public static void main(String[] arguments) throws Exception {
        try (Client client = Client.builder().endpoints(arguments[0]).build()) {
            Kv run = new Kv(client.getKVClient());
            run.oneKey();
            run.intervals();
            run.transactions();
            run.refusals();
            check(!wait(client.getClusterClient().listMember()).getMembers().isEmpty(), "members");
        }
        System.out.println("java jetcd: all as expected");
    }

    private void oneKey() throws Exception {
        check(wait(kv.get(MISSING)).getCount() == 0, "a missing key");
        long first = wait(kv.put(A, bytes("one"))).getHeader().getRevision();
        PutOption previous = PutOption.builder().withPrevKV().build();
        KeyValue old = wait(kv.put(A, bytes("two"), previous)).getPrevKv();
        check(old.getValue().equals(bytes("one")), "the previous value");
        KeyValue now = wait(kv.get(A)).getKvs().get(0);
        check(now.getCreateRevision() == first, "the create revision");
        check(now.getModRevision() == first + 1, "the mod revision");
        check(now.getVersion() == 2, "the version");
        GetOption then = GetOption.builder().withRevision(first).build();
        check(wait(kv.get(A, then)).getKvs().get(0).getValue().equals(bytes("one")), "an old read");
        GetOption local = GetOption.builder().withSerializable(true).build();
        check(wait(kv.get(A, local)).getKvs().get(0).getVersion() == 2, "a serializable read");
    }

    private void intervals() throws Exception {
        wait(kv.put(B, ByteSequence.from(new byte[] {0, -1})));
        GetOption one = GetOption.builder().isPrefix(true).withLimit(1).build();
        var answer = wait(kv.get(bytes(PREFIX), one));
        check(answer.isMore() && answer.getCount() == 2, "a limit");
        check(answer.getKvs().size() == 1, "one key of a prefix");
        GetOption down =
            GetOption.builder()
                .isPrefix(true)
                .withSortOrder(GetOption.SortOrder.DESCEND)
                .withSortField(GetOption.SortTarget.KEY)
                .build();
        check(wait(kv.get(bytes(PREFIX), down)).getKvs().get(0).getKey().equals(B), "descending");
        GetOption count = GetOption.builder().isPrefix(true).withCountOnly(true).build();
        check(wait(kv.get(bytes(PREFIX), count)).getKvs().isEmpty(), "count only");
    }

    private void transactions() throws Exception {
        var swapped =
            wait(kv.txn()
                .If(new Cmp(A, Cmp.Op.EQUAL, CmpTarget.value(bytes("two"))))
                .Then(Op.put(A, bytes("three"), PutOption.DEFAULT), Op.get(A, GetOption.DEFAULT))
                .Else(Op.delete(A, DeleteOption.DEFAULT))
                .commit());
        check(swapped.isSucceeded(), "a swap");
        KeyValue read = swapped.getGetResponses().get(0).getKvs().get(0);
        check(read.getValue().equals(bytes("three")), "a read after a write");
        var refused =
            wait(kv.txn()
                .If(new Cmp(MISSING, Cmp.Op.GREATER, CmpTarget.createRevision(0)))
                .Then(Op.put(A, bytes("never"), PutOption.DEFAULT))
                .Else(Op.get(A, GetOption.DEFAULT))
                .commit());
        check(!refused.isSucceeded(), "a condition that does not hold");
    }

    private void refusals() throws Exception {
        long revision = wait(kv.put(A, bytes("four"))).getHeader().getRevision();
        wait(kv.compact(revision, CompactOption.builder().withCompactPhysical(true).build()));
        String compacted = "etcdserver: mvcc: required revision has been compacted";
        refuse(kv.compact(revision), compacted);
        refuse(kv.get(A, GetOption.builder().withRevision(revision - 1).build()), compacted);
        refuse(
            kv.get(A, GetOption.builder().withRevision(revision + 1000000).build()),
            "etcdserver: mvcc: required revision is a future revision");
        refuse(kv.put(bytes(""), bytes("x")), "etcdserver: key is not provided");
        DeleteOption all = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
        var gone = wait(kv.delete(bytes(PREFIX), all));
        check(gone.getDeleted() == 2 && gone.getPrevKvs().size() == 2, "a deleted prefix");
    }

    private static void refuse(CompletableFuture<?> answer, String text) throws Exception {
        try {
            wait(answer);
        } catch (ExecutionException error) {
            check(error.getCause().getMessage().contains(text), "not refused so: " + error);
            return;
        }
        throw new AssertionError("not refused: " + text);
    }

    private static <T> T wait(CompletableFuture<T> answer) throws Exception {
        return answer.get(30, TimeUnit.SECONDS);
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    private static void check(boolean ok, String what) {
        if (!ok) {
            throw new AssertionError("jetcd: " + what);
        }
    }
}
