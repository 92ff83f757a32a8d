//! Requests to the API of a machine whose guest never begins: real memory, accelerators and scripts behind the real routes. Every
//! answer must be one that the description of the API has, and a refusal must be a problem that says what is wrong.

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};
use hmmvisor::Config;
use hmmvisor::api::Reply;
use hmmvisor::ending::End;
use hmmvisor::run::Asked;
use hmmvisor_api::{Outcome, Problem, Provoke, Record};
use serde_json::{Map, Value, json};

/// The machine. Its guest has 1024 pages.
const CONFIG: &str = r#"
[workload]
name = "pingpong"
[machine]
memory = "4M"
[devices]
count = 2
memory = "1M"
"#;
/// The most requests of an input: a machine takes longer to make than they do.
const MOST: usize = 24;

/// A method of a resource, as the API's description has it.
struct Operation {
    method: String,
    path: String,
    /// The names of the parameters of its query, and of the fields of its body.
    query: Vec<String>,
    body: Vec<String>,
    statuses: Vec<u16>,
}

/// All of them: what the API gets is asked, too, without a change here.
fn operations() -> &'static [Operation] {
    static OPERATIONS: OnceLock<Vec<Operation>> = OnceLock::new();
    OPERATIONS.get_or_init(|| {
        let api: Value = serde_json::from_str(&hmmvisor::api::openapi()).expect("it is JSON");
        let paths = api["paths"].as_object().expect("there are resources");
        let all = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("a resource has methods");
            methods.iter().map(|(method, operation)| Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                query: query(operation),
                body: body(&api, operation),
                statuses: statuses(operation),
            })
        });
        all.collect()
    })
}

fn query(operation: &Value) -> Vec<String> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let of_query = parameters.filter(|it| it["in"] == "query");
    let names = of_query.filter_map(|it| it["name"].as_str());
    names.map(str::to_owned).collect()
}

fn body(api: &Value, operation: &Value) -> Vec<String> {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let Some(name) = schema["$ref"].as_str() else {
        return Vec::new();
    };
    let schema = api.pointer(name.trim_start_matches('#'));
    let properties = schema.and_then(|it| it["properties"].as_object());
    properties
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

fn statuses(operation: &Value) -> Vec<u16> {
    let responses = operation["responses"].as_object().into_iter().flatten();
    let statuses = responses.map(|(status, _)| status.parse().expect("statuses are numbers"));
    statuses.collect()
}

/// A value in a request.
#[derive(Debug)]
enum Given {
    /// One that may be right for a field of this name.
    Fit(u16),
    Odd(Odd),
}

impl<'a> Arbitrary<'a> for Given {
    /// Most often one that may be right: a request has several.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Given> {
        Ok(match bytes.ratio(7, 8)? {
            true => Given::Fit(bytes.arbitrary()?),
            false => Given::Odd(bytes.arbitrary()?),
        })
    }
}

/// A value that a field may not have.
#[derive(Arbitrary, Debug)]
enum Odd {
    Nothing,
    Truth(bool),
    Number(i64),
    Fraction(f64),
    Text(String),
    List(Vec<u8>),
}

impl Given {
    fn value(&self, name: &str) -> Value {
        match self {
            Given::Fit(n) => fit(name, *n),
            Given::Odd(Odd::Nothing) => Value::Null,
            Given::Odd(Odd::Truth(truth)) => json!(truth),
            Given::Odd(Odd::Number(number)) => json!(number),
            Given::Odd(Odd::Fraction(number)) => json!(number),
            Given::Odd(Odd::Text(text)) => json!(text),
            Given::Odd(Odd::List(list)) => json!(list),
        }
    }
}

const SCRIPTS: [&str; 4] = [
    "return { on_fault = function(page, write, device, now) return page, 4 end }",
    "return { on_fault = function() error('no') end, victims = function(want, list) return list end }",
    "local n = param('window', 3) return { on_fault = function(page) return page, n end }",
    "return {",
];

fn fit(name: &str, n: u16) -> Value {
    let of = |words: &[&str]| json!(words[usize::from(n) % words.len()]);
    match name {
        "first" | "page" => json!(n % 1030),
        "pages" => json!(n % 600),
        "to" => of(&["system", "device0", "device1", "device2", "device", "gpu"]),
        "permission" => of(&["read-only", "read-write"]),
        "hint" => of(&[
            "read-mostly",
            "preferred:device0",
            "preferred:system",
            "accessed-by:device1",
            "hot",
        ]),
        "spec" => of(&[
            "density+lru",
            "sequential+fifo",
            "adaptive",
            "on-demand+s3-fifo",
            "mine.luau:window=3+lru",
            "mine.luau",
            "density:threshold=101",
        ]),
        "script" => of(&SCRIPTS),
        "region" => json!({"first": n % 3 * 512, "pages": n % 5 * 256}),
        "at" => of(&[
            "to-device-before-copy",
            "to-device-copied",
            "to-device-committed",
            "flush",
            "to-system-before-copy",
            "to-system-copied",
            "to-system-committed",
        ]),
        "outcome" => match n % 3 {
            0 => json!("fail"),
            rest => json!({ "delay-ms": rest }),
        },
        "times" => json!(n % 4),
        "kinds" => of(&["cpu-fault", "cpu-fault,to-device", "to-system,", "nothing"]),
        // Nothing is written.
        "path" => of(&["-", "", "/no/such/folder/t", "/"]),
        _ => json!(u64::from(n) << (n % 48)),
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// An operation of the description, with the numbers in its path and values for its fields, as many as there are; and
    /// perhaps one that it does not have.
    Known {
        operation: u8,
        number: u8,
        values: Vec<Given>,
        more: Option<(String, Given)>,
    },
    /// Its body, as it is.
    Body {
        operation: u8,
        number: u8,
        body: String,
    },
    /// Whatever it is.
    Any {
        method: u8,
        path: String,
        content_type: Option<String>,
        body: Vec<u8>,
    },
}

pub fn run(bytes: &[u8]) {
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(bytes)) else {
        return;
    };
    if steps.is_empty() {
        return;
    }
    let config: Config = toml::from_str(CONFIG).expect("it is one");
    let machine = Asked::new(&config).expect("KVM and userfaultfd are needed");
    for step in steps.iter().take(MOST) {
        ask(&machine, step);
    }
    assert_eq!(machine.end(), End::Quit);
}

fn ask(machine: &Asked, step: &Step) {
    const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"];
    const JSON: Option<&str> = Some("application/json");
    let known = |operation: &u8, number: &u8| {
        let operation = &operations()[usize::from(*operation) % operations().len()];
        // The numbers that there are, or not.
        let parts = operation
            .path
            .split('/')
            .map(|part| match part.starts_with('{') {
                true => (number % 4).to_string(),
                false => part.to_owned(),
            });
        (operation, parts.collect::<Vec<_>>().join("/"))
    };
    match step {
        Step::Known {
            operation,
            number,
            values,
            more,
        } => {
            let (operation, mut path) = known(operation, number);
            let mut values = values.iter();
            let mut fields = |names: &[String]| {
                let fields = names.iter().zip(&mut values);
                let mut fields: Map<_, _> = fields
                    .filter(|(_, given)| !matches!(given, Given::Odd(Odd::Nothing)))
                    .map(|(name, given)| (name.clone(), given.value(name)))
                    .collect();
                let more = more
                    .iter()
                    .map(|(name, given)| (name.clone(), given.value(name)));
                fields.extend(more);
                fields
            };
            let query = fields(&operation.query);
            if !query.is_empty() {
                path = format!("{path}?{}", encoded(&query));
            }
            let body = match operation.body.is_empty() {
                true => Vec::new(),
                false => json!(fields(&operation.body)).to_string().into_bytes(),
            };
            if harmless(&body)
                && let Some(reply) = machine
                    .resources()
                    .ask(&operation.method, &path, JSON, body)
            {
                described(operation, &path, &reply);
            }
        }
        Step::Body {
            operation,
            number,
            body,
        } => {
            let (operation, path) = known(operation, number);
            let body = body.clone().into_bytes();
            if harmless(&body)
                && let Some(reply) = machine
                    .resources()
                    .ask(&operation.method, &path, JSON, body)
            {
                described(operation, &path, &reply);
            }
        }
        Step::Any {
            method,
            path,
            content_type,
            body,
        } => {
            let method = METHODS[usize::from(*method) % METHODS.len()];
            let content_type = content_type.as_deref();
            if harmless(body)
                && let Some(reply) =
                    machine
                        .resources()
                        .ask(method, path, content_type, body.clone())
            {
                right(path, &reply);
            }
        }
    }
}

/// A query with these parameters.
fn encoded(fields: &Map<String, Value>) -> String {
    let escaped = |text: &str| {
        text.bytes()
            .map(|byte| format!("%{byte:02x}"))
            .collect::<String>()
    };
    let pairs = fields.iter().map(|(name, value)| {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        format!("{}={}", escaped(name), escaped(&value))
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// Whether a request with this body neither writes a file nor takes long.
fn harmless(body: &[u8]) -> bool {
    let record = serde_json::from_slice::<Record>(body);
    if record
        .is_ok_and(|it| Path::new(&it.path).parent().is_none_or(Path::is_dir) && it.path != "-")
    {
        return false;
    }
    let provoke = serde_json::from_slice::<Provoke>(body);
    !provoke.is_ok_and(|it| matches!(it.outcome, Outcome::DelayMs(3..)))
}

fn described(operation: &Operation, path: &str, reply: &Reply) {
    right(path, reply);
    let statuses = &operation.statuses;
    assert!(
        statuses.contains(&reply.status),
        "{} {path}: {reply:?}",
        operation.method
    );
}

fn right(path: &str, reply: &Reply) {
    assert!(reply.status < 500, "{path}: {reply:?}");
    if reply.status >= 400 {
        // An answer to HEAD has none.
        if reply.body.is_empty() {
            return;
        }
        assert_eq!(reply.content_type, "application/problem+json", "{path}");
        let problem: Problem = serde_json::from_slice(&reply.body).expect("it is a problem");
        assert_eq!(problem.status, reply.status, "{path}");
        assert!(
            !problem.title.is_empty() && !problem.detail.is_empty(),
            "{path}: {problem:?}"
        );
    } else if reply.content_type == "application/json" && !reply.body.is_empty() {
        let _: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    }
}
