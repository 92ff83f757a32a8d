//! Torture. It keeps the records of its pages in statics, so it runs only once in a process.

use hmmvisor_accesses::{AccessError, Settings, generate};

#[test]
fn torture_verifies_once() {
    let settings = Settings {
        workload: "torture".to_owned(),
        params: vec![
            ("ops".to_owned(), "2000".to_owned()),
            ("pages".to_owned(), "24".to_owned()),
        ],
        vcpus: 2,
        devices: 2,
        memory: 16 << 20,
        ..Settings::default()
    };
    let printed = generate(&settings, |_| ()).unwrap();
    assert!(
        printed.contains("2,000 operations on 24 shared pages"),
        "{printed}"
    );
    let again = generate(&settings, |_| ()).unwrap_err();
    assert!(matches!(again, AccessError::Used { .. }), "{again}");
    let mut timed = settings;
    timed.params.push(("seconds".to_owned(), "1".to_owned()));
    let timed = generate(&timed, |_| ()).unwrap_err();
    assert!(matches!(timed, AccessError::NeedsMachine { .. }), "{timed}");
}
