//! Which host CPU each thread runs on.
//!
//! A fault is served fastest by a thread on the CPU that took it: no thread has to be woken on another CPU. So
//! vCPUs are pinned, and each CPU that has vCPUs has a service thread.

use crate::config::Config;

/// Host CPUs of all threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuPlacement {
    /// The CPUs that vCPUs are pinned to, cyclically; empty if vCPUs are not pinned.
    pub vcpus: Vec<usize>,
    /// The CPU of each service thread; none if the thread is not pinned.
    pub service: Vec<Option<usize>>,
    /// The CPU of each accelerator's thread; none if the thread is not pinned.
    pub devices: Vec<Option<usize>>,
}

impl CpuPlacement {
    /// Places the threads of a checked configuration on a host where this process may use `allowed` CPUs.
    pub fn new(config: &Config, allowed: &[usize]) -> CpuPlacement {
        let placement = &config.placement;
        let vcpus = match &placement.vcpu_cpus {
            Some(cpus) => cpus.clone(),
            None if placement.pin => allowed.to_vec(),
            None => Vec::new(),
        };
        let vcpu_count = config.machine.vcpus as usize;

        // The CPUs that actually have a vCPU, each once.
        let mut used = Vec::new();
        for cpu in vcpus.iter().take(vcpu_count) {
            if !used.contains(cpu) {
                used.push(*cpu);
            }
        }
        let unpinned = vcpu_count.min(allowed.len()).max(1);
        let service_cpus = match &config.service.cpus {
            Some(cpus) => cpus,
            None if placement.pin => &used,
            None => &Vec::new(),
        };
        let default = if service_cpus.is_empty() {
            unpinned
        } else {
            service_cpus.len()
        };
        let threads = config.service.threads.unwrap_or(default);

        let device_cpus = placement.device_cpus.as_deref().unwrap_or_default();
        CpuPlacement {
            vcpus,
            service: cyclic(service_cpus, threads),
            devices: cyclic(device_cpus, config.devices.count as usize),
        }
    }
}

fn cyclic(cpus: &[usize], count: usize) -> Vec<Option<usize>> {
    (0..count)
        .map(|index| cpus.iter().cycle().nth(index).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(vcpus: u32, change: impl FnOnce(&mut Config)) -> CpuPlacement {
        let mut config = Config::default();
        config.machine.vcpus = vcpus;
        change(&mut config);
        CpuPlacement::new(&config, &[3, 5])
    }

    #[test]
    fn each_cpu_with_vcpus_has_a_service_thread() {
        assert_eq!(place(1, |_| {}).service, [Some(3)]);
        let four = place(4, |_| {});
        assert_eq!(
            (four.vcpus, four.service, four.devices),
            (vec![3, 5], vec![Some(3), Some(5)], vec![None])
        );
    }

    #[test]
    fn everything_can_be_overridden() {
        let unpinned = place(4, |config| config.placement.pin = false);
        assert_eq!(
            (unpinned.vcpus, unpinned.service),
            (vec![], vec![None, None])
        );
        let chosen = place(2, |config| {
            config.placement.vcpu_cpus = Some(vec![5]);
            config.placement.device_cpus = Some(vec![3]);
            config.devices.count = 2;
            config.service.threads = Some(3);
        });
        assert_eq!(chosen.vcpus, [5]);
        assert_eq!(chosen.service, [Some(5); 3]);
        assert_eq!(chosen.devices, [Some(3); 2]);
    }
}
