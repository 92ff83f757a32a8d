//! The host's CPUs: which ones this process may use, and running a thread on one of them.

use std::io;
use std::mem;

/// Returns the host CPUs that this process may run on, ascending, beginning with the one it is running on now
/// and continuing cyclically: so several virtual machines on one host spread over its CPUs.
pub fn allowed() -> Vec<usize> {
    let mut cpus = allowed_set().unwrap_or_default();
    // SAFETY: has no arguments and only returns a number, negative on failure.
    let here = unsafe { libc::sched_getcpu() };
    if let Some(position) = cpus.iter().position(|cpu| *cpu as libc::c_int == here) {
        cpus.rotate_left(position);
    }
    cpus
}

fn allowed_set() -> io::Result<Vec<usize>> {
    // SAFETY: a CPU set is a bitmap; all zeros is the empty one.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most the given size to `set`.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index is below the number of bits of the set.
    let is_set = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(is_set).collect())
}

/// Runs the calling thread on this host CPU only.
pub fn pin_this_thread(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a CPU set is a bitmap; all zeros is the empty one.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the index is below the number of bits of the set, as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel only reads the set, which lives throughout the call.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the calling thread wait for its turn when it is woken, instead of interrupting the thread that woke
/// it.
pub fn do_not_preempt_wakers() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel only reads the structure, which lives throughout the call.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_use_one_cpu() {
        std::thread::spawn(|| {
            let cpu = *allowed().last().unwrap();
            pin_this_thread(cpu).unwrap();
            assert_eq!(allowed(), [cpu]);
            assert!(pin_this_thread(100_000).is_err());
        })
        .join()
        .unwrap();
    }
}
