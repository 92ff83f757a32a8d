//! The machine as a whole: seen, moved about, paused, ended.

use super::*;

#[test]
fn a_machine_is_watched_and_steered() {
    let machine = Machine::start(&["--vcpus", "2", "--devices", "2"]);
    let vm: Vm = machine.get("/v1/vm");
    assert_eq!((vm.state, vm.vcpus, vm.devices), (VmState::Running, 2, 2));
    assert_eq!(vm.workload.as_deref(), Some("pingpong"));
    assert_eq!(
        (vm.memory_bytes, vm.device_memory_bytes),
        (256 << 20, 16 << 20)
    );
    wait_until("pages with contents", || {
        machine.get::<Memory>("/v1/memory").untouched_pages < 65536
    });
    let memory: Memory = machine.get("/v1/memory");
    let everywhere = memory.untouched_pages
        + memory.system_pages
        + memory.device_pages
        + memory.coherent_pages
        + memory.duplicated_pages
        + memory.exclusive_pages
        + memory.poisoned_pages;
    assert_eq!((memory.pages, everywhere), (65536, 65536));

    // Pages that the guest does not use.
    let range = "first=60000&pages=100";
    let residency = |places: &[(u32, u32, Where, Option<u8>)]| {
        let answer: Residency = machine.get(&format!("/v1/memory/residency?{range}"));
        let runs = answer.runs.iter();
        let runs: Vec<_> = runs
            .map(|it| (it.first, it.pages, it.place, it.device))
            .collect();
        assert_eq!(runs, places);
        let path = format!("/v1/memory/residency/bytes?{range}");
        let answer = machine.client.get(&path).unwrap();
        assert_eq!(answer.content_type, "application/octet-stream");
        let bytes = places.iter().flat_map(|(_, pages, place, device)| {
            std::iter::repeat_n(Byte::new(*place, *device, false).0, *pages as usize)
        });
        assert_eq!(answer.body, bytes.collect::<Vec<u8>>());
    };
    residency(&[(60000, 100, Where::Untouched, None)]);
    let pin = machine.pin(60000, 50);
    residency(&[
        (60000, 50, Where::System, None),
        (60050, 50, Where::Untouched, None),
    ]);
    let migrate = |first, pages, to: &str| machine.migrate(first, pages, to);
    // Pinned.
    assert_eq!(migrate(60000, 50, "device1"), 0);
    assert_eq!(machine.get::<Pins>("/v1/memory/pins").pins, [pin]);
    machine
        .client
        .delete(&format!("/v1/memory/pins/{}", pin.pin))
        .unwrap();
    assert_eq!(machine.get::<Pins>("/v1/memory/pins").pins, []);
    assert_eq!(migrate(60000, 50, "device1"), 50);
    residency(&[
        (60000, 50, Where::Device, Some(1)),
        (60050, 50, Where::Untouched, None),
    ]);
    let device: Device = machine.get("/v1/devices/1");
    assert!(device.attached && device.used_pages >= 50, "{device:?}");
    assert_eq!(device.capacity_pages, 4096);
    // Back, a part of it.
    assert_eq!(migrate(60000, 20, "system"), 20);
    machine
        .client
        .post(
            "/v1/memory/protect",
            Some(&json!({"first": 60000, "pages": 10, "permission": "read-only"})),
        )
        .unwrap();
    let answer: Residency = machine.get("/v1/memory/residency?first=60000&pages=20");
    let runs: Vec<_> = answer
        .runs
        .iter()
        .map(|it| (it.pages, it.read_only))
        .collect();
    assert_eq!(runs, [(10, true), (10, false)]);
    let hint = json!({"first": 60000, "pages": 10, "hint": "preferred:device1"});
    machine.client.post("/v1/memory/hint", Some(&hint)).unwrap();
    machine
        .client
        .post("/v1/memory/poison", Some(&json!({"page": 60019})))
        .unwrap();
    assert_eq!(machine.get::<Memory>("/v1/memory").poisoned_pages, 1);

    let report = machine.stop();
    assert_eq!(report["end"], "quit");
    assert!(report["migrations_to_device"]["user"].as_u64().unwrap() >= 50);
}

#[test]
fn a_paused_machine_serves_requests_and_goes_on() {
    let machine = Machine::start(&["--vcpus", "2", "--watchdog", "2"]);
    let faults = || {
        let stats: Value = machine.get("/v1/stats");
        stats["cpu_faults"].as_u64().unwrap()
    };
    let problem = machine.refused("POST", "/v1/vm/pause?commands=drop", ());
    assert_eq!(problem.field.as_deref(), Some("query"), "{problem:?}");
    for commands in ["finish", "halt"].into_iter().cycle().take(20) {
        machine.act(&format!("/v1/vm/pause?commands={commands}"));
        machine.act("/v1/vm/pause");
        assert_eq!(machine.get::<Vm>("/v1/vm").state, VmState::Paused);
        let pages = |to: &str| machine.migrate(60000, 512, to);
        machine.pin(60000, 512);
        let pins: Pins = machine.get("/v1/memory/pins");
        machine
            .client
            .delete(&format!("/v1/memory/pins/{}", pins.pins[0].pin))
            .unwrap();
        assert_eq!((pages("device0"), pages("system")), (512, 512));
        machine.act("/v1/vm/resume");
        assert_eq!(machine.get::<Vm>("/v1/vm").state, VmState::Running);
        let before = faults();
        wait_until("faults after the pause", || faults() > before);
    }
    // The guest gives no sign of life in a pause, and that is no hang.
    machine.act("/v1/vm/pause");
    let before = faults();
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(faults(), before);
    machine.act("/v1/vm/resume");
    wait_until("faults after the long pause", || faults() > before);
    // A paused machine ends, too.
    machine.act("/v1/vm/pause");
    assert_eq!(machine.stop()["end"], "quit");
}

#[test]
fn a_fault_that_fails_in_a_pause_is_taken_again_afterwards() {
    let machine = Machine::start(&[]);
    let path = "/v1/devices/0/provocations";
    let body = Provoke {
        at: WayPoint::ToSystemBeforeCopy,
        outcome: Outcome::Fail,
        times: None,
    };
    machine.post::<Provocations>(path, body);
    // The vCPU sleeps in a fault that is tried again for about a second.
    wait_until("a failure", || {
        machine.get::<Provocations>(path).provocations[0].happened > 0
    });
    machine.act("/v1/vm/pause");
    // By now it has failed for good, and the vCPU would have been kicked for longer than it may be deaf.
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(machine.get::<Vm>("/v1/vm").state, VmState::Paused);
    machine.client.delete(path).unwrap();
    machine.act("/v1/vm/resume");
    let faults = || machine.get::<Value>("/v1/stats")["cpu_faults"].as_u64();
    let before = faults();
    wait_until("more faults", || faults() > before);
    assert_eq!(machine.stop()["error"], Value::Null);
}

#[test]
fn requests_at_the_end_of_a_run_get_a_clear_answer() {
    for _ in 0..5 {
        let machine = Machine::start(&["--vcpus", "2"]);
        std::thread::scope(|scope| {
            let asking = (0..4).map(|n| {
                let client = machine.client.clone();
                scope.spawn(move || {
                    loop {
                        let answer = match n {
                            0 => client.get("/v1/stats"),
                            1 => client.get("/v1/memory"),
                            2 => client.post(
                                "/v1/memory/migrate",
                                Some(&json!({"first": 0, "pages": 65536, "to": "system"})),
                            ),
                            _ => client.post("/v1/vm/pause", None::<&()>),
                        };
                        match answer {
                            Ok(_) => {}
                            Err(ClientError::Refused(problem)) => {
                                assert_eq!(problem.status, 409, "{problem:?}");
                            }
                            Err(ClientError::Connect { .. } | ClientError::Broken { .. }) => return,
                            Err(other) => panic!("{other}"),
                        }
                    }
                })
            });
            let asking: Vec<_> = asking.collect();
            machine.act("/v1/vm/stop");
            asking.into_iter().for_each(|it| it.join().unwrap());
        });
        let mut machine = machine;
        assert_eq!(machine.ended()["end"], "quit");
    }
}
