//! The figures in Prometheus's text format (version 0.0.4). Each counter of `--json` is there under the same name, with
//! the unit and the `_total` that Prometheus's conventions want.

use std::fmt::{Display, Write};

use hmm_backend::links::Route;
use hmm_backend::observe::{Cause, Counters, FaultCause, FaultLatencies, LatencyBuckets, Stats};
use hmm_backend::pages::{PAGE_SIZE, Place};
use hmmvisor_api::VmState;

use super::live::Live;

/// The media type.
pub(super) const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels of a sample, like `{side="cpu"}`; empty without any.
struct Labels(String);

impl Labels {
    fn none() -> Labels {
        Labels(String::new())
    }

    fn of(pairs: &[(&str, &dyn Display)]) -> Labels {
        let pair = |(name, value): &(&str, &dyn Display)| {
            let value = value.to_string();
            let value = value.replace('\\', r"\\").replace('"', "\\\"");
            format!("{name}=\"{}\"", value.replace('\n', r"\n"))
        };
        let pairs: Vec<_> = pairs.iter().map(pair).collect();
        Labels(format!("{{{}}}", pairs.join(",")))
    }
}

/// The text of a scrape, as far as it is written.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP hmmvisor_{name} {help}");
        let _ = writeln!(self.0, "# TYPE hmmvisor_{name} {kind}");
    }

    fn family<T: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, T)>,
    ) {
        self.head(name, kind, help);
        for (Labels(labels), value) in samples {
            let _ = writeln!(self.0, "hmmvisor_{name}{labels} {value}");
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("{name}_total");
        self.family(&name, "counter", help, [(Labels::none(), value)]);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help, [(Labels::none(), value)]);
    }

    fn latencies(&mut self, all: &FaultLatencies) {
        let name = "fault_latency_seconds";
        let help = "How long faults took, by what was done about them: of CPUs from the message's arrival to the wake-up, of devices from the access to the translation.";
        self.head(name, "histogram", help);
        let cpus = FaultCause::OF_CPUS.iter();
        let cpus = cpus.map(|cause| ("cpu", cause, all.cpus.get(cause)));
        let devices = FaultCause::OF_DEVICES.iter();
        let devices = devices.map(|cause| ("device", cause, all.devices.get(cause)));
        let none = LatencyBuckets::default();
        for (side, cause, buckets) in cpus.chain(devices) {
            let (cause, buckets) = (cause.name(), buckets.unwrap_or(&none));
            let labels = format!("side=\"{side}\",cause=\"{cause}\"");
            let bounds = LatencyBuckets::BOUNDS.iter().zip(buckets.counts);
            for (bound, count) in bounds {
                let le = bound.as_secs_f64();
                let _ = writeln!(
                    self.0,
                    "hmmvisor_{name}_bucket{{{labels},le=\"{le}\"}} {count}"
                );
            }
            let (count, sum) = (buckets.count, buckets.sum.as_secs_f64());
            let _ = write!(
                self.0,
                "hmmvisor_{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n\
                 hmmvisor_{name}_sum{{{labels}}} {sum}\n\
                 hmmvisor_{name}_count{{{labels}}} {count}\n"
            );
        }
    }

    fn stats(&mut self, live: &Live, stats: &Stats) {
        let help = "Served CPU faults.";
        self.counter("cpu_faults", help, stats.cpu_faults);
        let help = "Served CPU faults of a vCPU; those of the VMM's own accesses are in none.";
        let faults = live.threads.faults(&live.backend).into_iter().enumerate();
        let samples = faults.map(|(vcpu, faults)| (Labels::of(&[("vcpu", &vcpu)]), faults));
        self.family("vcpu_faults_total", "counter", help, samples);
        let help = "CPU faults on pages that had never been touched.";
        self.counter("first_touch_faults", help, stats.first_touch_faults);
        let help = "Served device faults.";
        self.counter("device_faults", help, stats.device_faults);
        let directions = [
            ("device", &stats.to_device),
            ("system", &stats.to_system),
            ("other-device", &stats.between_devices),
        ];
        let samples = directions.into_iter().flat_map(|(to, counts)| {
            Cause::ALL.into_iter().map(move |cause| {
                let labels = Labels::of(&[("to", &to), ("cause", &cause.name())]);
                (labels, counts.get(&cause).copied().unwrap_or(0))
            })
        });
        let help = "Pages that have migrated, by where to and why.";
        self.family("migrated_pages_total", "counter", help, samples);
        let help = "Calls of drivers' page_free.";
        self.counter("page_free_calls", help, stats.page_free_calls);
        let help = "Pages with contents that the guest has freed.";
        self.counter("pages_freed", help, stats.pages_freed);
        let described = stats.counters.named().zip(Counters::descriptions());
        for ((name, value), help) in described {
            self.counter(counter_name(name), help, value);
        }
        let help = "The most pages that all devices' memories together have held at a time.";
        self.gauge("device_pages_peak", help, stats.device_pages_peak);
    }

    fn machine(&mut self, live: &Live) {
        let vm = live.vm();
        let labels = [
            ("version", &env!("CARGO_PKG_VERSION") as &dyn Display),
            ("engine", &vm.engine),
            ("policy", &vm.policy),
        ];
        let help = "What runs; always 1.";
        self.family("info", "gauge", help, [(Labels::of(&labels), 1)]);
        let help = "Seconds since the vCPUs were started.";
        self.gauge("uptime_seconds", help, vm.uptime_s);
        let help = "Whether the machine is paused.";
        self.gauge("paused", help, u8::from(vm.state == VmState::Paused));
        let bytes = u64::from(live.backend.pages()) * PAGE_SIZE;
        self.gauge("memory_bytes", "Managed guest memory.", bytes);
    }

    fn devices(&mut self, live: &Live) {
        let label = |number: usize| Labels::of(&[("device", &number)]);
        let usage = live.accelerators.iter().enumerate().filter_map(|(n, it)| {
            let usage = live.backend.device_usage(it.device_id());
            usage.ok().map(|usage| (n, usage))
        });
        let usage: Vec<_> = usage.collect();
        let bytes = |pages: u32| u64::from(pages) * PAGE_SIZE;
        let used = usage.iter().map(|(n, it)| (label(*n), bytes(it.used)));
        let help = "What an accelerator's memory holds.";
        self.family("device_memory_used_bytes", "gauge", help, used);
        let capacity = usage.iter().map(|(n, it)| (label(*n), bytes(it.capacity)));
        let help = "What an accelerator's memory can hold.";
        self.family("device_memory_bytes", "gauge", help, capacity);
        let stats: Vec<_> = live.accelerators.iter().map(|it| it.stats()).collect();
        let mut counter = |name: &str, help: &str, value: &dyn Fn(usize) -> u64| {
            let samples = (0..stats.len()).map(|n| (label(n), value(n)));
            self.family(name, "counter", help, samples);
        };
        let help = "Commands that an accelerator has completed, failed ones included.";
        counter("accelerator_commands_total", help, &|n| stats[n].commands);
        let help = "Commands of an accelerator that failed.";
        counter("accelerator_errors_total", help, &|n| stats[n].errors);
        let help =
            "Accesses of an accelerator that neither its TLB nor its page table could translate.";
        counter("accelerator_faults_total", help, &|n| stats[n].faults);
        let help = "Faults of an accelerator on virtual addresses, which the guest had to answer.";
        counter("accelerator_guest_faults_total", help, &|n| {
            stats[n].guest_faults
        });
        let help = "Translations found in an accelerator's TLB.";
        counter("accelerator_tlb_hits_total", help, &|n| stats[n].tlb_hits);
        let help = "Translations not found in an accelerator's TLB.";
        counter("accelerator_tlb_misses_total", help, &|n| {
            stats[n].tlb_misses
        });
    }

    fn links(&mut self, live: &Live) {
        let traffic = live.backend.link_traffic();
        let name = |place| match place {
            Place::System => "system".to_owned(),
            Place::Device(device) => format!("device{}", device.0),
        };
        let labels: Vec<_> = traffic
            .iter()
            .map(|it| {
                let route = match it.route {
                    Route::Host => "host",
                    Route::Peer => "peer",
                };
                [name(it.from), name(it.to), route.to_owned()]
            })
            .collect();
        let label = |n: usize| {
            let [from, to, route] = &labels[n];
            Labels::of(&[("from", from), ("to", to), ("route", route)])
        };
        let transfers = traffic.iter().map(|it| it.transfers).enumerate();
        let help = "Transfers over a link.";
        let samples = transfers.map(|(n, value)| (label(n), value));
        self.family("link_transfers_total", "counter", help, samples);
        let bytes = traffic.iter().map(|it| it.bytes).enumerate();
        let help = "What has crossed a link.";
        let samples = bytes.map(|(n, value)| (label(n), value));
        self.family("link_bytes_total", "counter", help, samples);
        let times = traffic.iter().map(|it| it.time.as_secs_f64()).enumerate();
        let help = "How long a link was busy, by its model.";
        let samples = times.map(|(n, value)| (label(n), value));
        self.family("link_busy_seconds_total", "counter", help, samples);
    }
}

/// Returns the name of a counter of `--json`. Prometheus's conventions have no metric with bits in its name, whatever they are.
fn counter_name(name: &str) -> &str {
    match name {
        "bits_read" => "access_flags_read",
        name => name,
    }
}

/// Returns the text of a scrape.
pub(super) fn text(live: &Live) -> String {
    let mut text = Text::default();
    text.machine(live);
    text.stats(live, &live.backend.stats());
    text.latencies(&live.backend.fault_latencies());
    text.devices(live);
    text.links(live);
    text.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let Labels(labels) = Labels::of(&[("policy", &"a\"b\\c\nd"), ("n", &1)]);
        assert_eq!(labels, r#"{policy="a\"b\\c\nd",n="1"}"#);
    }
}
