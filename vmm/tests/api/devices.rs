//! Accelerators: sizes of their memories, operations, drivers that are provoked.

use super::*;

/// Accelerators' memories shrink and grow while the guest checks what is in them.
#[test]
fn a_torture_is_verified_while_memories_change_their_size() {
    for engine in ["remap", "copy"] {
        let sizes = ["--device-memory", "512K", "--device-memory-max", "2M"];
        let mut machine = Machine::tortured(engine, &sizes);
        let device: Device = machine.get("/v1/devices/1");
        assert_eq!(
            (device.capacity_pages, device.capacity_max_pages),
            (128, 512)
        );
        let sizes = [512, 1, 64, 300, 5, 128, 20].into_iter().cycle();
        let mut changed = 0;
        for (n, pages) in sizes.enumerate() {
            let path = format!("/v1/devices/{}", n % 2);
            let memory_bytes = pages * 4096;
            match machine.client.put(&path, &SetDevice { memory_bytes }) {
                Ok(answer) => {
                    let device: Device = serde_json::from_slice(&answer.body).unwrap();
                    assert_eq!(u64::from(device.capacity_pages), pages, "{device:?}");
                    assert!(u64::from(device.used_pages) <= pages, "{device:?}");
                    changed += 1;
                }
                // Drivers fail on purpose here: its pages could not leave for a second.
                Err(ClientError::Refused(problem)) if problem.detail.contains("keeps its size") => {
                }
                Err(
                    ClientError::Connect { .. }
                    | ClientError::Broken { .. }
                    | ClientError::TimedOut { .. },
                ) => break,
                Err(ClientError::Refused(problem)) if problem.detail.contains("has ended") => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(changed > 50, "{changed}");
        let report = machine.ended();
        assert_eq!(report["verified"], true, "{report}");
    }
}

#[test]
fn a_memory_that_cannot_shrink_keeps_its_size() {
    let machine = Machine::start(&["--devices", "2"]);
    machine.empty_and_pause();
    let memory_bytes = 64 << 12;
    machine.migrate(60000, 100, "device1");
    let fail = Provoke {
        at: WayPoint::ToSystemBeforeCopy,
        outcome: Outcome::Fail,
        times: None,
    };
    let provocations = "/v1/devices/1/provocations";
    let _: Provocations = machine.post(provocations, fail);
    let problem = machine.refused("PUT", "/v1/devices/1", SetDevice { memory_bytes });
    assert_eq!(problem.status, 409, "{problem:?}");
    assert!(problem.detail.contains("36 pages"), "{problem:?}");
    let device: Device = machine.get("/v1/devices/1");
    assert_eq!((device.capacity_pages, device.used_pages), (4096, 100));
    machine.client.delete(provocations).unwrap();
    let device: Device = machine.put("/v1/devices/1", SetDevice { memory_bytes });
    assert_eq!((device.capacity_pages, device.used_pages), (64, 64));
    machine.migrate(60000, 100, "device1");
    assert_eq!(machine.get::<Device>("/v1/devices/1").used_pages, 64);
    let report = machine.stop();
    assert!(report["migrations_to_system"]["eviction"].as_u64().unwrap() >= 36);
}

#[test]
fn long_requests_are_followed_and_cancelled() {
    let machine = Machine::start(&["--devices", "2", "--device-memory", "64M"]);
    machine.empty_and_pause();
    let provocations = "/v1/devices/1/provocations";
    let delay = |at| {
        let outcome = Outcome::DelayMs(10_000);
        let times = None;
        let _: Provocations = machine.post(provocations, Provoke { at, outcome, times });
    };
    /// Has a request begin in another thread, cancels it while its driver waits, and returns what it is answered.
    fn cancelled(machine: &Machine, path: &str, body: Option<Value>) -> (Operation, Problem) {
        std::thread::scope(|scope| {
            let request = scope.spawn(|| machine.client.post(path, body.as_ref()));
            let operations = || machine.get::<Operations>("/v1/operations").operations;
            wait_until("an operation", || {
                operations().iter().any(|it| it.total_pages > 0)
            });
            let begun = operations()[0];
            assert!(!begun.cancelled && begun.done_pages < begun.total_pages);
            // One of the two at a time.
            if begun.doing == Doing::Detach {
                for (method, path) in [("POST", path), ("PUT", "/v1/devices/1")] {
                    let body = json!({"memory_bytes": 4096});
                    let problem = machine.refused(method, path, body);
                    assert_eq!(problem.status, 409, "{problem:?}");
                    let number = format!("operation {}", begun.operation);
                    assert!(problem.detail.contains(&number), "{problem:?}");
                }
            }
            let path = format!("/v1/operations/{}", begun.operation);
            let answer = machine.client.delete(&path).unwrap();
            let now: Operation = serde_json::from_slice(&answer.body).unwrap();
            assert!(now.cancelled, "{now:?}");
            machine.client.delete("/v1/devices/1/provocations").unwrap();
            let problem = match request.join().unwrap() {
                Err(ClientError::Refused(problem)) => problem,
                other => panic!("{other:?}"),
            };
            assert_eq!((problem.status, problem.title.as_str()), (409, "cancelled"));
            assert_eq!(operations(), []);
            (begun, problem)
        })
    }

    delay(WayPoint::ToDeviceCopied);
    let migrate = json!({"first": 40000, "pages": 16384, "to": "device1"});
    let (begun, problem) = cancelled(&machine, "/v1/memory/migrate", Some(migrate));
    assert_eq!((begun.doing, begun.device), (Doing::Migrate, Some(1)));
    assert_eq!(begun.total_pages, 16384);
    assert!(problem.detail.contains("of 16384 pages"), "{problem:?}");
    let moved = machine.get::<Device>("/v1/devices/1").used_pages;
    assert!(moved > 0 && moved < 16384, "{moved}");
    assert_eq!(machine.migrate(40000, 16384, "system"), u64::from(moved));

    // Each page is a folio of its own, so that it takes more than one call of the driver.
    for page in 0..100 {
        assert_eq!(machine.migrate(60000 + 2 * page, 1, "device1"), 1);
    }
    delay(WayPoint::ToSystemCopied);
    let (begun, problem) = cancelled(&machine, "/v1/devices/1/detach", None);
    assert_eq!((begun.doing, begun.device), (Doing::Detach, Some(1)));
    assert!(problem.detail.contains("of 100 pages"), "{problem:?}");
    let device: Device = machine.get("/v1/devices/1");
    assert!(device.attached, "{device:?}");
    assert!((1..100).contains(&device.used_pages), "{device:?}");
    assert_eq!(machine.migrate(50000, 10, "device1"), 10);
    // What is not cancelled ends as it should.
    machine.act("/v1/devices/1/detach");
    let device: Device = machine.get("/v1/devices/1");
    assert_eq!((device.attached, device.used_pages), (false, 0));
    machine.stop();
}

#[test]
fn drivers_are_provoked_and_a_device_is_detached() {
    let machine = Machine::start(&["--devices", "2"]);
    let path = "/v1/devices/1/provocations";
    // So that only the requests' migrations pass the way-points.
    machine.act("/v1/vm/pause");
    let migrate = |to: &str| machine.migrate(60000, 4, to);
    machine.pin(60000, 4);
    machine.client.delete("/v1/memory/pins/0").unwrap();
    let provoke = |at, outcome, times| {
        let body = Provoke { at, outcome, times };
        machine.post::<Provocations>(path, body).provocations
    };
    provoke(WayPoint::ToDeviceBeforeCopy, Outcome::Fail, Some(1));
    assert_eq!(migrate("device1"), 0);
    assert_eq!(migrate("device1"), 4);
    let all: Provocations = machine.get(path);
    assert_eq!(
        (all.provocations[0].left, all.provocations[0].happened),
        (Some(0), 1)
    );
    provoke(WayPoint::ToSystemCopied, Outcome::Fail, None);
    assert_eq!(migrate("system"), 0);
    machine.client.delete(path).unwrap();
    assert_eq!(machine.get::<Provocations>(path).provocations, []);
    assert_eq!(migrate("system"), 4);
    // A delay takes its time, and ends early when it is ended.
    provoke(WayPoint::ToDeviceCommitted, Outcome::DelayMs(50), Some(1));
    let begin = Instant::now();
    assert_eq!(migrate("device1"), 4);
    assert!(begin.elapsed() >= Duration::from_millis(50));
    provoke(WayPoint::ToSystemCopied, Outcome::DelayMs(10_000), Some(1));
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| migrate("system"));
        wait_until("the delay", || {
            machine
                .get::<Provocations>(path)
                .provocations
                .iter()
                .any(|it| it.at == WayPoint::ToSystemCopied && it.happened == 1)
        });
        machine.client.delete(path).unwrap();
        assert_eq!(moving.join().unwrap(), 4);
    });

    assert_eq!(migrate("device1"), 4);
    machine.act("/v1/devices/1/detach");
    let devices: Devices = machine.get("/v1/devices");
    let states: Vec<_> = devices.devices.iter().map(|it| it.attached).collect();
    assert_eq!(states, [true, false]);
    assert_eq!(devices.devices[1].used_pages, 0);
    let problem = machine.refused("POST", "/v1/devices/1/detach", json!(null));
    assert_eq!(problem.status, 409);
    assert!(problem.detail.contains("detached already"), "{problem:?}");
    let body = json!({"first": 60000, "pages": 4, "to": "device1"});
    let problem = machine.refused("POST", "/v1/memory/migrate", body);
    assert_eq!(problem.field.as_deref(), Some("to"), "{problem:?}");
}
