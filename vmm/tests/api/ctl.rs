//! The command `ctl`.

use super::*;

#[test]
fn ctl_asks_for_everything() {
    let machine = Machine::start(&["--devices", "2"]);
    let says = |line: &str| machine.ctl_says(&line.split(' ').collect::<Vec<_>>());
    assert!(says("vm").contains("pingpong, running for"));
    assert!(says("memory").contains("device memory"));
    assert!(says("pin 60000 8").contains("pin 0: 8 pages from 60000"));
    assert!(says("pins").contains("pin 0"));
    says("unpin 0");
    assert_eq!(says("migrate 60000 8 device1"), "8 pages have moved\n");
    assert!(says("residency 60000 16").contains("60000          8 pages  device 1"));
    assert_eq!(says("evict 60000 8"), "8 pages have moved\n");
    says("protect 60000 8 read-only");
    says("hint 60000 8 read-mostly");
    assert!(says("policy").contains('+'));
    assert!(says("policy density --region 0 512").contains("density"));
    let script = machine.path("mine.luau");
    fs::write(
        &script,
        "return { on_fault = function(fault) return nil end }",
    )
    .unwrap();
    let named = format!("policy {} --check", script.display());
    assert!(says(&named).contains("mine.luau"));
    assert!(!says("policy").contains("mine.luau"));
    assert!(says("devices").contains("device1  attached"));
    assert!(
        says("provoke 1 flush --delay 5 --times 2")
            .contains("flush: takes 5 ms longer, 2 times more")
    );
    says("provoke 1 --end");
    assert_eq!(says("provoke 1"), "");
    assert!(says("resize 1 8M").contains("of 2048 pages"));
    assert_eq!(says("operations"), "");
    assert_eq!(machine.ctl(&["cancel", "99"]).status.code(), Some(1));
    assert!(says("pause").contains("paused"));
    assert!(says("resume").contains("running"));
    assert!(says("record").contains("nothing has been recorded"));
    let trace = machine.path("t");
    assert!(says(&format!("record {}", trace.display())).starts_with("recording into"));
    assert!(says("record --end").contains("events in"));
    assert_eq!(
        says("events --kinds cpu-fault --count 3").lines().count(),
        3
    );
    assert!(says("metrics").contains("hmmvisor_cpu_faults_total"));
    let stats: Value = serde_json::from_str(&says("stats")).unwrap();
    assert_eq!(stats["workload"], "pingpong");
    let vm: Vm = serde_json::from_str(&says("vm --json")).unwrap();
    assert_eq!(vm.state, VmState::Running);
    let api: Value = serde_json::from_str(&says("openapi")).unwrap();
    assert!(api["paths"].as_object().unwrap().len() > 20);

    // Mistakes: of the command line 2, of the request 1.
    let code = |line: &str| {
        machine
            .ctl(&line.split(' ').collect::<Vec<_>>())
            .status
            .code()
    };
    assert_eq!(code("migrate 60000 8"), Some(2));
    assert_eq!(code("protect 0 1 rw"), Some(2));
    let output = machine.ctl(&["migrate", "70000", "8", "system"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("0 to 65535"), "{error}");
    // Its guest would find that its commands fail.
    says("pause --commands halt");
    says("detach 1");
    assert!(says("devices").contains("device1  detached"));
    says("stop");
    let mut machine = machine;
    machine.ended();
    let output = machine.ctl(&["vm"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("--api"), "{error}");
}
