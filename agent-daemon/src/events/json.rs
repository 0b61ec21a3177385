//! JSON written straight into a reused buffer: no tree, no allocation, one pass.
//!
//! Keys are literals of this crate and need no escaping; values are anything.

use std::io::Write as _;

/// An object being written; [`object`] and [`Object::object`] close it.
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

/// An array being written.
pub struct Array<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

/// Writes one object.
pub fn object(out: &mut Vec<u8>, write: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    write(&mut Object { out, empty: true });
    out.push(b'}');
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Writes a string.
    pub fn str(&mut self, key: &str, value: &str) {
        self.key(key);
        string(self.out, value);
    }

    /// Writes bytes as a string; what is not UTF-8 becomes U+FFFD.
    pub fn lossy(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.out.push(b'"');
        for chunk in value.utf8_chunks() {
            escape(self.out, chunk.valid());
            if !chunk.invalid().is_empty() {
                self.out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
        self.out.push(b'"');
    }

    /// Writes a string that `write` produces; it must produce nothing that needs escaping.
    pub fn plain(&mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.out.push(b'"');
        write(self.out);
        self.out.push(b'"');
    }

    /// Writes a string from parts, such as `format_args!`; nothing of it is escaped.
    pub fn display(&mut self, key: &str, value: std::fmt::Arguments<'_>) {
        self.plain(key, |out| {
            // Writing to a `Vec` cannot fail.
            let _ = out.write_fmt(value);
        });
    }

    /// Writes an unsigned number.
    pub fn uint(&mut self, key: &str, value: u64) {
        self.key(key);
        uint(self.out, value);
    }

    /// Writes a signed number.
    pub fn int(&mut self, key: &str, value: i64) {
        self.key(key);
        if value < 0 {
            self.out.push(b'-');
        }
        uint(self.out, value.unsigned_abs());
    }

    /// Writes a truth value.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Writes an object.
    pub fn object(&mut self, key: &str, write: impl FnOnce(&mut Object<'_>)) {
        self.key(key);
        object(self.out, write);
    }

    /// Writes an array.
    pub fn array(&mut self, key: &str, write: impl FnOnce(&mut Array<'_>)) {
        self.key(key);
        self.out.push(b'[');
        write(&mut Array { out: self.out, empty: true });
        self.out.push(b']');
    }

    /// Writes JSON that was made before.
    pub fn raw(&mut self, key: &str, json: &[u8]) {
        self.key(key);
        self.out.extend_from_slice(json);
    }
}

impl Array<'_> {
    fn next(&mut self) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
    }

    /// Writes a string.
    pub fn str(&mut self, value: &str) {
        self.next();
        string(self.out, value);
    }

    /// Writes an object.
    pub fn object(&mut self, write: impl FnOnce(&mut Object<'_>)) {
        self.next();
        object(self.out, write);
    }
}

fn string(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    escape(out, value);
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, value: &str) {
    let bytes = value.as_bytes();
    let mut from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[from..at]);
        from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[from..]);
}

fn uint(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_is_written_is_what_serde_json_reads() {
        let every: String = (0..0x250).filter_map(char::from_u32).collect();
        let mut out = Vec::new();
        object(&mut out, |o| {
            o.str("every", &every);
            o.lossy("lossy", b"a\xff\xfe\"b");
            o.uint("max", u64::MAX);
            o.uint("zero", 0);
            o.int("min", i64::MIN);
            o.bool("yes", true);
            o.object("empty", |_| {});
            o.array("list", |a| {
                a.str("x");
                a.object(|o| o.uint("n", 10));
            });
            o.display("shown", format_args!("{}:{}", 8, 1));
            o.raw("raw", b"[1]");
        });
        assert!(!out.contains(&b'\n'));
        let read: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            read,
            json!({
                "every": every, "lossy": "a\u{fffd}\u{fffd}\"b", "max": u64::MAX, "zero": 0,
                "min": i64::MIN, "yes": true, "empty": {}, "list": ["x", {"n": 10}],
                "shown": "8:1", "raw": [1],
            })
        );
    }
}
