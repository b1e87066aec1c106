//! What people type: the language of `txn`, lines of `watch -i`, Go's strings, numbers and times.

use std::io;

use crate::fuzz::fuzz;
use crate::{go, kv, txn};

#[test]
fn fuzz_txn_language() {
    let samples = [
        &b"mod(\"key\") > \"0\"\nval('k') = \"\\x41\\u00e4\\n\"\nlease(\"k\") != \"1f\"\n\nput k v --lease=7\n\
           get \"a b\" --prefix --limit 3\ndel 'x' --from-key\n\nput k \"es\\\"c\"\n\n"[..],
        b"version(\"a\") < \"-1\"\ncreate(\"a\")=\"2\"\n\n\n\n",
        b"\n\n\n",
    ];
    let samples = samples.map(<[u8]>::to_vec);
    fuzz("txn_language", "--bin quoratectl fuzz_txn_language", &samples, |mut input, _| {
        // A request, or a reason why it is none.
        drop(txn::read_txn(&mut input, &mut io::sink(), false));
    });
}

#[test]
fn fuzz_go_texts() {
    let texts = [
        "\"a\\x41\\101\\u00e4\\U0001F600\\n\" rest",
        "`raw`",
        "1h2m3.5s",
        "-0x1F",
        "0b1_0",
        "µs",
        "-1.5ms",
    ];
    let samples = texts.map(|text| text.as_bytes().to_vec());
    fuzz("go_texts", "--bin quoratectl fuzz_go_texts", &samples, |input, _| {
        let quoted = go::quote(input);
        let (unquoted, rest) = go::unquote_prefix(&quoted).expect("what we quote can be read");
        assert_eq!((&unquoted[..], rest), (input, ""));
        drop(kv::prefix_end(input));
        let Ok(text) = str::from_utf8(input) else { return };
        drop(go::unquote_prefix(text));
        drop(txn::split_words(text));
        for radix in [10, 16] {
            drop(go::parse_int(text, radix));
        }
        if let Ok(duration) = go::parse_duration(text) {
            assert_eq!(go::parse_duration(&go::format_duration(duration)), Ok(duration));
        }
    });
}
