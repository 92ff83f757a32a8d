//! Pages about made-up runs and sweeps: complete, self-contained, and well-formed. `tests/tools/report-in-browser` opens the same
//! pages in a browser.

mod made_up;
mod markup;

use hmm_backend::observe::Event;
use hmmvisor_experiments::report::{RunReport, sweep_page};

fn run_page(events: &[Event]) -> String {
    let mut report = RunReport::new(made_up::meta());
    for event in events {
        report.add(event);
    }
    report.finish()
}

/// Everything a page must have, whatever it is about.
fn check(html: &str) {
    markup::check(html);
    for what in [
        "NaN", "inf\"", "infinity", "<script", "http://", "https://", "@import", "url(h",
    ] {
        assert!(!html.contains(what), "the page has {what}");
    }
}

/// The pages go where the browser's test looks for them, if it asks.
fn keep(name: &str, html: &str) {
    if let Some(folder) = std::env::var_os("REPORT_PAGES") {
        std::fs::write(std::path::Path::new(&folder).join(name), html).unwrap();
    }
}

#[test]
fn a_run_has_all_its_plots() {
    let html = run_page(&made_up::run());
    check(&html);
    for title in [
        "Where pages were",
        "Faults over time",
        "Bytes over time, by cause",
        "How long faults took",
        "Thrashing pages",
    ] {
        assert!(html.contains(title), "{title}");
    }
    for cause in ["demand", "prefetch", "eviction"] {
        assert!(html.contains(&format!(">{cause}</text>")), "{cause}");
    }
    // The shared pages at the end of memory go to and fro, 16 in a row.
    assert!(
        html.contains("0x103c00000–0x103c0ffff</td><td>16</td>"),
        "no row of thrashing pages"
    );
    assert!(html.len() < 600_000, "{} bytes", html.len());
    keep("run.html", &html);
}

#[test]
fn strange_runs_have_pages_too() {
    check(&run_page(&[]));
    let events = made_up::run();
    for one in events.iter().take(50) {
        check(&run_page(std::slice::from_ref(one)));
    }
    let mut hostile = made_up::hostile();
    check(&run_page(&hostile));
    hostile.extend(events);
    check(&run_page(&hostile));
}

#[test]
fn text_is_escaped() {
    let mut meta = made_up::meta();
    meta.title = "<b>&\"x\u{1}".into();
    meta.facts.push(("<i>".into(), "</table><script>".into()));
    let html = RunReport::new(meta).finish();
    check(&html);
    assert!(html.contains("&lt;b&gt;&amp;&quot;x"));
}

#[test]
fn a_sweep_has_all_its_plots() {
    let folder = tempfile::tempdir().unwrap();
    made_up::sweep(folder.path(), &["8M", "16M", "32M", "64M"], 5);
    let html = sweep_page(folder.path()).unwrap();
    check(&html);
    for title in [
        "Modelled time by policy",
        "Elapsed time by policy",
        "Data moved by policy",
        "Faults by policy",
        "What the traffic buys",
        "Failed runs",
        "± ",
    ] {
        assert!(html.contains(title), "{title}");
    }
    for policy in made_up::POLICIES {
        // Tables break policies between their parts.
        let broken = policy.replace('+', "+<wbr>").replace(',', ",<wbr>");
        assert!(html.contains(&format!(">{broken}</td>")), "{policy}");
    }
    keep("sweep.html", &html);

    let one = tempfile::tempdir().unwrap();
    made_up::sweep(one.path(), &["16M"], 1);
    let html = sweep_page(one.path()).unwrap();
    check(&html);
    keep("sweep-one-size.html", &html);
}

#[test]
fn an_unfinished_sweep_says_so() {
    let folder = tempfile::tempdir().unwrap();
    made_up::sweep(folder.path(), &["8M", "16M"], 2);
    let journal = folder.path().join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let cut: String = text.split_inclusive('\n').take(20).collect();
    std::fs::write(&journal, cut).unwrap();
    let html = sweep_page(folder.path()).unwrap();
    check(&html);
    let all = made_up::POLICIES.len() * 2 * 2 * 2;
    assert!(html.contains(&format!("{} of {all} runs are missing", all - 19)));
}

#[test]
fn no_sweep_is_an_error() {
    let error = sweep_page(std::path::Path::new("/nosuch"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("opening journal /nosuch"), "{error}");
}
