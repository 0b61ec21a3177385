use agent_daemon::kernel::*;
fn main() {
    let host = Host::read().unwrap();
    let pins = std::env::args().nth(1).unwrap();
    let attach = std::env::args().nth(2).unwrap();
    let s = load::Settings { pins: pins.clone().into(), attach: attach.into(), denied_bytes: 1<<20, told_bytes: 1<<22, lsm: true };
    match load::load(&host, &s) {
        Ok(l) => println!("{:#?}", l.coverage),
        Err(e) => { println!("{e}"); let mut c: &dyn std::error::Error = &e; while let Some(n) = c.source() { println!("  cause: {n}"); c = n; } }
    }
    load::remove_pins(std::path::Path::new(&pins)).unwrap();
}
