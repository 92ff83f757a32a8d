//! Policies that are replaced.

use super::*;

/// Policies of all kinds, again and again, while drivers fail and devices come and go.
#[test]
fn a_torture_is_verified_while_its_policy_changes() {
    let policies = [
        json!({"spec": "on-demand+fifo"}),
        json!({"spec": "adaptive+s3-fifo"}),
        json!({"spec": "four.luau", "script": "return { on_fault = function(page) return page, 4 end }"}),
        json!({"spec": "sequential+clock+thrash"}),
        json!({"spec": "density", "region": {"first": 512, "pages": 1024}}),
    ];
    for engine in ["remap", "copy"] {
        let mut machine = Machine::tortured(engine, &[]);
        let again = policies.iter().cycle();
        let taken = again.map_while(|policy| machine.client.put("/v1/policy", policy).ok());
        let changes = taken.count();
        assert!(changes > 50, "{changes}");
        let report = machine.ended();
        assert_eq!(report["verified"], true, "{report}");
    }
}

#[test]
fn policies_are_replaced_and_bad_ones_change_nothing() {
    let machine = Machine::start(&[]);
    let spec = |spec: &str| SetPolicy {
        spec: spec.to_owned(),
        script: None,
        region: None,
    };
    let script = |name: &str, text: &str| SetPolicy {
        script: Some(text.to_owned()),
        ..spec(name)
    };
    let begin: Policy = machine.get("/v1/policy");
    let after: Policy = machine.put("/v1/policy", spec("sequential+fifo"));
    assert!(after.policy.starts_with("sequential"), "{after:?}");
    assert_ne!(after, begin);
    assert_eq!(machine.get::<Policy>("/v1/policy"), after);

    for (request, field, says) in [
        (spec("denisty"), "spec", "unknown policy 'denisty'"),
        (spec("mine.luau"), "script", "its text has to be here"),
        (script("density", "return {}"), "spec", "names no script"),
        (script("mine.luau", "return {"), "script", "mine.luau:1"),
        (script("mine.luau", "return 7"), "script", "mine.luau"),
    ] {
        let text = serde_json::to_string(&request).unwrap();
        for (method, path) in [("PUT", "/v1/policy"), ("POST", "/v1/policy/check")] {
            let problem = machine.refused(method, path, &request);
            assert_eq!(problem.status, 400, "{text}: {problem:?}");
            assert_eq!(problem.field.as_deref(), Some(field), "{text}: {problem:?}");
            assert!(problem.detail.contains(says), "{text}: {problem:?}");
        }
        assert_eq!(machine.get::<Policy>("/v1/policy"), after, "{text}");
    }
    let in_region = |first, pages| SetPolicy {
        region: Some(Pages { first, pages }),
        ..spec("on-demand")
    };
    let problem = machine.refused("PUT", "/v1/policy", in_region(3, 512));
    assert_eq!(problem.field.as_deref(), Some("region"), "{problem:?}");
    let problem = machine.refused("PUT", "/v1/policy", in_region(65024, 1024));
    assert_eq!(problem.status, 400, "{problem:?}");
    assert_eq!(machine.get::<Policy>("/v1/policy"), after);

    let both: Policy = machine.put("/v1/policy", in_region(512, 1024));
    assert!(both.policy.contains("on-demand"), "{both:?}");
    // A check uses nothing.
    let would: Policy = machine.post("/v1/policy/check", spec("density+lru"));
    assert!(would.policy.starts_with("density"), "{would:?}");
    assert_eq!(machine.get::<Policy>("/v1/policy"), both);

    let text = "return { on_fault = function(fault) return nil end }";
    let mine: Policy = machine.put("/v1/policy", script("mine.luau+fifo", text));
    assert!(mine.policy.starts_with("mine.luau+fifo"), "{mine:?}");
    // Its decisions are counted while the run goes on, and at its end.
    wait_until("a decision of the script", || {
        let stats: Value = machine.get("/v1/stats");
        stats["scripts"]["decisions"].as_u64() > Some(0)
    });
    let report = machine.stop();
    assert_eq!(report["policy"], mine.policy.as_str());
    assert!(report["scripts"]["decisions"].as_u64() > Some(0));
}
