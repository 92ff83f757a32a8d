//! What a script hears besides faults, and what it is given.

use std::time::Duration;

use hmm_backend::pages::{DeviceId, Hint, Page, PageRange, Place};
use hmm_backend::policy::{BlockFault, PolicyFactory, PolicySpec, Seen, Wish};

use crate::rig::{Lines, load};
use crate::views::each_view;

#[test]
fn all_events_reach_the_script_with_what_they_say() {
    let text = r#"
        local recent, link, counters = hmm.recent(), hmm.link(), hmm.counters()
        local links = hmm.links()
        local touched, untouched, resident = hmm.touched(), hmm.untouched(), hmm.resident()
        print("loaded", BLOCK)
        return {
            tick_interval = 250,
            on_fault = function(page, write, device, now, n, free, len, capacity)
                assert(write and device == nil and n == 1 and len == 512 and now > 0)
                assert(free == math.huge and capacity == math.huge)
                assert(pages.count(touched, 0, 512) == 1 and pages.has(touched, page % 512))
                assert(pages.next(touched, 0) == page % 512 and pages.next(touched, page % 512 + 1) == nil)
                assert(not pages.has(resident, page % 512))
                local latency, bandwidth = link()
                assert(latency == 10 and bandwidth == 25000)
                latency, bandwidth = links(nil, 3)
                assert(latency == 10 and bandwidth == 25000)
                latency, bandwidth = links(15, 0)
                assert(latency == 20 and bandwidth == 25000 and links(0, 16) == nil)
                assert(counters() == 0 and recent(1) == nil)
                state.faults = (state.faults or 0) + 1
                return true
            end,
            on_remote_accesses = function(page, device, count) return device == 1 and count == 7 end,
            on_hint = function(first, count, name, value, on) print(first, count, name, value, on) end,
            on_free = function(first, count) print("free", first, count, state.faults) end,
            on_tick = function(now, cpu) print("tick", now, cpu) return { { 5, 3 }, { 600, 1, 2 } } end,
        }"#;
    let lines = Lines::default();
    let scripts = load(text, &lines).unwrap();
    let mut policy = scripts.fault_policy();
    lines.take();
    let said = lines.clone();
    each_view(1, 5, move |fault, view| {
        let mut default = "density".parse::<PolicySpec>().unwrap().fault_policy();
        assert_eq!(policy.advise(fault, view), default.advise(fault, view));
        let device = |to| BlockFault {
            to: Place::Device(DeviceId(to)),
            ..*fault
        };
        assert_eq!(policy.remote_accesses(&device(1), 7, view), fault.pages);
        assert!(policy.remote_accesses(&device(1), 6, view).is_empty());
        let range = PageRange::with_len(Page(7), 2);
        policy.hinted(
            range,
            Hint::PreferredLocation(Some(Place::Device(DeviceId(3)))),
        );
        policy.hinted(range, Hint::PreferredLocation(Some(Place::System)));
        policy.hinted(range, Hint::PreferredLocation(None));
        policy.hinted(range, Hint::AccessedBy(DeviceId(4), false));
        policy.hinted(range, Hint::ReadMostly(true));
        policy.freed(range);
        assert_eq!(policy.tick_interval(), Some(Duration::from_micros(250)));
        let seen = Seen {
            cpu_faults: 9,
            ..Seen::default()
        };
        let wish = |first, n, to| Wish {
            pages: PageRange::with_len(Page(first), n),
            to,
        };
        assert_eq!(
            policy.tick(Duration::from_millis(2), seen),
            [
                wish(5, 3, Place::System),
                wish(600, 1, Place::Device(DeviceId(2)))
            ]
        );
        // What stands beside the script may want ticks more often.
        assert_eq!(policy.tick(Duration::from_micros(2100), seen), []);
        let lines: Vec<_> = said.take();
        assert_eq!(
            lines,
            [
                "bad.luau: 7 2 preferred 3 true",
                "bad.luau: 7 2 preferred nil true",
                "bad.luau: 7 2 preferred nil false",
                "bad.luau: 7 2 accessed-by 4 false",
                "bad.luau: 7 2 read-mostly nil true",
                "bad.luau: free 7 2 1",
                "bad.luau: tick 2000 9",
            ]
        );
    });
    let figures = scripts.figures();
    assert_eq!((figures.decisions, figures.failures), (10, 0));
}

/// A wish in the place of a list of wishes would do nothing, and so would an index under a name.
#[test]
fn lists_with_other_keys_are_errors_of_the_script() {
    let wishes = "where a list of {first, count, device} is expected";
    for (body, expected) in [
        ("return { count = 4 }", "the key `count` "),
        ("return { { 5, 3 }, migrate = {} }", "the key `migrate` "),
        ("return { { 5, 3 }, [9] = { 7, 1 } }", "the key [9] "),
    ] {
        let text = format!("return {{ tick_interval = 250, on_tick = function() {body} end }}");
        let lines = Lines::default();
        let scripts = load(&text, &lines).unwrap();
        let mut policy = scripts.fault_policy();
        let wished = policy.tick(Duration::from_millis(2), Seen::default());
        assert_eq!(wished, [], "{body}");
        let said = lines.take();
        let expected = format!("bad.luau:1: on_tick returned a table with {expected}{wishes}");
        assert!(said[0].starts_with(&expected), "{said:?}");
    }
}
