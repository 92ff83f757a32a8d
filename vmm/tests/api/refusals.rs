//! Requests that are wrong.

use super::*;

#[test]
fn wrong_requests_say_what_would_be_right() {
    let machine = Machine::start(&[]);
    let nothing = json!(null);
    let migrate =
        |first: u32, pages: u32, to: &str| json!({"first": first, "pages": pages, "to": to});
    for (method, path, body, status, field, says) in [
        (
            "GET",
            "/v1/nothing",
            nothing.clone(),
            404,
            None,
            "openapi.json",
        ),
        (
            "DELETE",
            "/v1/vm",
            nothing.clone(),
            405,
            None,
            "no such method",
        ),
        (
            "GET",
            "/v1/memory/residency?first=0",
            nothing.clone(),
            400,
            Some("query"),
            "pages",
        ),
        (
            "GET",
            "/v1/memory/residency?first=0&pages=1&x=1",
            nothing.clone(),
            400,
            Some("query"),
            "x",
        ),
        (
            "GET",
            "/v1/memory/residency?first=65536&pages=1",
            nothing.clone(),
            400,
            Some("first, pages"),
            "0 to 65535",
        ),
        (
            "GET",
            "/v1/memory/residency?first=0&pages=0",
            nothing.clone(),
            400,
            Some("first, pages"),
            "at least one",
        ),
        (
            "GET",
            "/v1/memory/residency?first=4294967295&pages=4294967295",
            nothing.clone(),
            400,
            Some("first, pages"),
            "0 to 65535",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            migrate(0, 1, "gpu"),
            400,
            Some("to"),
            "device0",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            migrate(0, 1, "device7"),
            400,
            Some("to"),
            "7",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            migrate(65535, 2, "system"),
            400,
            Some("first, pages"),
            "0 to 65535",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            json!({"first": 0, "pages": 1, "to": "system", "unit": "KiB"}),
            400,
            Some("unit"),
            "unknown field",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            json!({"first": "0K", "pages": 1, "to": "system"}),
            400,
            Some("first"),
            "invalid type",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            json!({"first": 0, "pages": 1}),
            400,
            Some("body"),
            "missing field `to`",
        ),
        (
            "POST",
            "/v1/memory/poison",
            json!({"page": 65536}),
            400,
            Some("page"),
            "0 to 65535",
        ),
        (
            "POST",
            "/v1/memory/hint",
            json!({"first": 0, "pages": 1, "hint": "hot"}),
            400,
            Some("hint"),
            "read-mostly",
        ),
        (
            "POST",
            "/v1/memory/protect",
            json!({"first": 0, "pages": 1, "permission": "rw"}),
            400,
            Some("permission"),
            "read-write",
        ),
        (
            "DELETE",
            "/v1/memory/pins/9",
            nothing.clone(),
            404,
            None,
            "no pin 9",
        ),
        (
            "DELETE",
            "/v1/memory/pins/x",
            nothing.clone(),
            404,
            None,
            "number",
        ),
        (
            "POST",
            "/v1/vm/power-button",
            nothing.clone(),
            409,
            None,
            "--kernel",
        ),
        ("GET", "/v1/devices/1", nothing.clone(), 404, None, "0 to 0"),
        (
            "PUT",
            "/v1/devices/1",
            json!({"memory_bytes": 4096}),
            404,
            None,
            "0 to 0",
        ),
        (
            "PUT",
            "/v1/devices/0",
            json!({"memory_bytes": 5000}),
            400,
            Some("memory_bytes"),
            "multiple of 4096",
        ),
        (
            "PUT",
            "/v1/devices/0",
            json!({"memory_bytes": 32 << 20}),
            400,
            Some("memory_bytes"),
            "--device-memory-max",
        ),
        (
            "DELETE",
            "/v1/operations/5",
            nothing.clone(),
            404,
            None,
            "no operation 5",
        ),
        (
            "POST",
            "/v1/devices/0/provocations",
            json!({"at": "to-device-committed", "outcome": "fail"}),
            400,
            Some("outcome"),
            "delay",
        ),
        (
            "POST",
            "/v1/devices/0/provocations",
            json!({"at": "flush", "outcome": {"delay-ms": 10001}}),
            400,
            Some("outcome.delay-ms"),
            "10000",
        ),
        (
            "POST",
            "/v1/devices/0/provocations",
            json!({"at": "flush", "outcome": "fail", "times": 0}),
            400,
            Some("times"),
            "at least once",
        ),
        (
            "GET",
            "/v1/events?kinds=cpu-faults",
            nothing.clone(),
            400,
            Some("kinds"),
            "cpu-fault",
        ),
        (
            "GET",
            "/v1/balloon",
            nothing.clone(),
            404,
            None,
            "--balloon",
        ),
        (
            "DELETE",
            "/v1/recording",
            nothing.clone(),
            409,
            None,
            "nothing is being recorded",
        ),
        (
            "PUT",
            "/v1/recording",
            json!({"path": "/no/such/folder/t"}),
            400,
            Some("path"),
            "make it first",
        ),
    ] {
        let problem = machine.refused(method, path, &body);
        let what = format!("{method} {path} {body}: {problem:?}");
        assert_eq!(problem.status, status, "{what}");
        assert_eq!(problem.field.as_deref(), field, "{what}");
        assert!(problem.detail.contains(says), "{what}");
    }
    // Not HTTP's own kinds of mistakes alone: what is no JSON, and what is too large.
    let raw = |head: &str, body: &[u8]| {
        let mut stream = UnixStream::connect(machine.path("api")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST /v1/memory/poison HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // The machine may close the connection before it has read all.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let json = "Content-Type: application/json\r\n";
    assert!(raw(json, b"{\"page\": 1").starts_with("HTTP/1.1 400"));
    assert!(raw(json, b"{\"page\": 1} 2").starts_with("HTTP/1.1 400"));
    let answer = raw("", b"{\"page\": 1}");
    assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    let answer = raw(json, &vec![b' '; 2 << 20]);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let memory: Memory = machine.get("/v1/memory");
    assert_eq!((memory.poisoned_pages, memory.read_only_pages), (0, 0));
    machine.stop();
}
