//! Runs the example and checks what it prints.

#[path = "../examples/process.rs"]
#[allow(dead_code, reason = "its main function")]
mod process;

#[test]
fn a_process_without_a_virtual_machine() {
    let mut out = Vec::new();
    process::run(&mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains("the CPU reads the sum 4032, as it should be: 4032"),
        "{text}"
    );
    let there = text
        .split("; ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let there: u32 = there.unwrap().parse().unwrap();
    assert!((1..=16).contains(&there), "{text}");
    // The figures after the detach are printed.
    assert!(text.contains("pages migrated: "), "{text}");
}
