//! Finds the kernel half that goes into the binaries.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-env-changed=AMBIT_BPF_OBJECT");
    let object = env::var("AMBIT_BPF_OBJECT").unwrap_or_else(|_| {
        format!("{}/../target/ambit.bpf.o", env::var("CARGO_MANIFEST_DIR").unwrap_or_default())
    });
    println!("cargo::rerun-if-changed={object}");
    if !Path::new(&object).is_file() {
        println!(
            "cargo::error=the kernel half {object} is not built; run `cargo xtask build`, or set \
             AMBIT_BPF_OBJECT to an object that is"
        );
    }
    println!("cargo::rustc-env=AMBIT_BPF_OBJECT={object}");
}
