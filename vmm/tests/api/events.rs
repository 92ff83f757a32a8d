//! The stream of events, and recordings.

use super::*;

#[test]
fn events_are_streamed_and_filtered() {
    let machine = Machine::start(&[]);
    let mut seen = Vec::new();
    let result = machine.client.lines("/v1/events", |line| {
        seen.push(serde_json::from_str::<Event>(line).unwrap());
        match seen.len() < 2000 {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    result.unwrap();
    let kinds: std::collections::BTreeSet<_> = seen
        .iter()
        .map(|event| match event {
            Event::Happened { kind, .. } => kind.as_str(),
            Event::Dropped { .. } => "dropped",
        })
        .collect();
    for kind in ["cpu-fault", "device-fault", "to-device", "to-system"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    assert!(seen.iter().any(|event| matches!(
        event,
        Event::Happened { kind, vcpu: Some(0), latency_us: Some(us), access: Some(_), .. } if kind == "cpu-fault" && *us > 0.0
    )));

    // Only what is asked for; and the end of the run ends the stream.
    std::thread::scope(|scope| {
        let (begun, begin) = std::sync::mpsc::channel();
        let client = machine.client.clone();
        let reader = scope.spawn(move || {
            let mut kinds = BTreeMap::new();
            let result = client.lines("/v1/events?kinds=to-system", |line| {
                match serde_json::from_str::<Event>(line).unwrap() {
                    Event::Happened { kind, .. } => *kinds.entry(kind).or_insert(0) += 1,
                    Event::Dropped { .. } => {}
                }
                let _ = begun.send(());
                ControlFlow::Continue(())
            });
            result.unwrap();
            kinds
        });
        begin.recv_timeout(PATIENCE).unwrap();
        machine.act("/v1/vm/stop");
        let kinds = reader.join().unwrap();
        assert_eq!(kinds.into_keys().collect::<Vec<_>>(), ["to-system"]);
    });
}

#[test]
fn a_client_that_does_not_read_is_told_what_it_has_missed() {
    // The default policy soon has few faults.
    let machine = Machine::start(&["--vcpus", "2", "--policy", "on-demand+lru"]);
    let mut slow = UnixStream::connect(machine.path("api")).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // Others are served, and so is the guest.
    let faults = || {
        let stats: Value = machine.get("/v1/stats");
        stats["cpu_faults"].as_u64().unwrap() + stats["device_faults"].as_u64().unwrap()
    };
    let before = faults();
    wait_until("many events", || faults() > before + 30_000);
    let mut text = String::new();
    let mut buffer = [0; 1 << 16];
    wait_until("a line about dropped events", || {
        let n = slow.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        text.contains("{\"dropped\":{")
    });
    drop(slow);
    machine.stop();
}

#[test]
fn a_recording_begins_and_ends_while_the_machine_runs() {
    let machine = Machine::start(&[]);
    let idle: Recording = machine.get("/v1/recording");
    assert_eq!(idle, Recording::default());
    let path = machine.path("first.trace");
    let body = |path: &Path| Record {
        path: path.display().to_string(),
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let problem = machine.refused("PUT", "/v1/recording", body(&elsewhere.path().join("t")));
    assert!(problem.detail.contains("--allow-write"), "{problem:?}");
    let begun: Recording = machine.put("/v1/recording", body(&path));
    assert!(begun.active && begun.path.as_deref() == path.to_str());
    let problem = machine.refused("PUT", "/v1/recording", body(&machine.path("second.trace")));
    assert_eq!(problem.status, 409);
    assert!(problem.detail.contains("first.trace"), "{problem:?}");
    wait_until("events in the trace", || {
        TraceReader::open(&path).is_ok_and(|reader| reader.totals().events > 1000)
    });
    let answer = machine.client.delete("/v1/recording").unwrap();
    let ended: Recording = serde_json::from_slice(&answer.body).unwrap();
    assert!(
        !ended.active && ended.events > 1000 && ended.error.is_none(),
        "{ended:?}"
    );
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
    assert_eq!(reader.totals().events, ended.events);
    assert_eq!(reader.meta().workload.as_deref(), Some("pingpong"));
    // Where the report goes is no place for a trace.
    let problem = machine.refused("PUT", "/v1/recording", body(&machine.path("json")));
    assert_eq!(problem.field.as_deref(), Some("path"), "{problem:?}");
    // One that the run's end ends.
    let path = machine.path("second.trace");
    machine.put::<Recording>("/v1/recording", body(&path));
    let report = machine.path("json");
    let folder = machine.folder.path().to_owned();
    wait_until("events in the second trace", || {
        TraceReader::open(&path).is_ok_and(|reader| reader.totals().events > 0)
    });
    machine.act("/v1/vm/stop");
    let mut machine = machine;
    let value = machine.ended();
    assert!(report.starts_with(&folder));
    assert_eq!(value["recording"]["path"], path.to_str().unwrap());
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
    assert_eq!(value["recording"]["events"], reader.totals().events);
}

/// A trace that begins in the middle of a run says first where pages are. Its replay makes the same migrations as the run.
#[test]
fn a_recording_in_the_middle_says_where_pages_are() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("run.toml");
    fs::write(&config, "[engine]\nlockstep = true\n").unwrap();
    let policy = "on-demand+lru+timeslice:min=0us";
    let config = ["run", config.to_str().unwrap(), "--policy", policy];
    let machine = Machine::with(&[&config[..], &PINGPONG].concat());
    wait_until("pages that have moved", || {
        let stats: Value = machine.get("/v1/stats");
        stats["pages_to_device"].as_u64() > Some(200)
    });
    // Some pages that the guest does not use, on either side.
    machine.act("/v1/vm/pause");
    machine.pin(60000, 700);
    machine.client.delete("/v1/memory/pins/0").unwrap();
    assert_eq!(machine.migrate(60100, 50, "device0"), 50);
    let at_first = machine.get::<Memory>("/v1/memory");
    let path = machine.path("t");
    let record = Record {
        path: path.display().to_string(),
    };
    machine.put::<Recording>("/v1/recording", record);
    machine.act("/v1/vm/resume");
    wait_until("events in the trace", || {
        TraceReader::open(&path).is_ok_and(|reader| reader.totals().events > 2000)
    });
    machine.act("/v1/vm/pause");
    machine.client.delete("/v1/recording").unwrap();

    let reader = TraceReader::open(&path).unwrap();
    let meta = reader.meta().clone();
    let events: Vec<backend::Event> = reader.map(Result::unwrap).collect();
    let begin = events.partition_point(|event| event.kind == backend::EventKind::Placed);
    let pages = |on_device| {
        let placed = events[..begin].iter();
        let there = placed.filter(|event| event.device.is_some() == on_device);
        there.map(|event| u64::from(event.pages)).sum::<u64>()
    };
    let placed = (pages(true), pages(false));
    assert_eq!(placed, (at_first.device_pages, at_first.system_pages));
    let replay = |events: &[backend::Event]| {
        let config = ReplayConfig {
            policy: Arc::new(policy.parse::<PolicySpec>().unwrap()),
            memory: meta.memory,
            device_memory: meta.device_memory,
            devices: 1,
            links: meta.link.parse().unwrap(),
            costs: Costs::default(),
            fidelity: meta.fidelity.parse().unwrap(),
            eviction_batch: meta.eviction_batch.unwrap(),
            time: Time::Trace,
            optimal: false,
            moves: true,
        };
        replay(events.iter().copied(), &config).unwrap()
    };
    /// For each page, where it has gone, in order.
    fn ways(events: &[backend::Event]) -> BTreeMap<u32, Vec<backend::EventKind>> {
        let mut ways = BTreeMap::<_, Vec<_>>::new();
        let moved = |kind| {
            matches!(
                kind,
                backend::EventKind::ToDevice | backend::EventKind::ToSystem
            )
        };
        for event in events.iter().filter(|event| moved(event.kind)) {
            for page in event.page.0..event.page.0 + event.pages {
                ways.entry(page).or_default().push(event.kind);
            }
        }
        ways
    }
    let live = ways(&events);
    let moves: u64 = live.values().map(|way| way.len() as u64).sum();
    assert!(moves > 500, "{moves}");
    let replayed = replay(&events);
    assert_eq!(ways(&replayed.moves), live);
    // What was there at the beginning is no figure of the policy's.
    let all = replayed.pages_to_device + replayed.pages_to_system;
    assert_eq!((all, replayed.cpu_faults > 0), (moves, true));
    // Without the beginning, pages that were on the device are taken for untouched.
    assert_ne!(ways(&replay(&events[begin..]).moves), live);
    machine.stop();
}
