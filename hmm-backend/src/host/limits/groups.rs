//! The control groups of this process and their limits.

use std::path::{Path, PathBuf};

use super::{field, number, read};

/// A control group that limits this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Folder of the group in the cgroup file system.
    pub folder: PathBuf,
    /// Number of processes and threads in use, and the limit (`pids.max`).
    pub threads: Option<(u64, u64)>,
    /// Memory use and limit.
    pub memory: Option<GroupMemory>,
}

/// Memory use and limit of a control group, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupMemory {
    /// The limit.
    pub limit: u64,
    /// Memory in use, without file contents: the kernel drops those when memory is short.
    pub used: u64,
    /// How much of the group's memory may still be moved to swap.
    pub swap: u64,
    /// Name of the file that sets the limit.
    pub file: &'static str,
}

impl GroupMemory {
    /// Bytes that the group's processes can still get before the kernel kills one of them.
    pub fn room(&self) -> u64 {
        self.limit
            .saturating_sub(self.used)
            .saturating_add(self.swap)
    }
}

impl Group {
    /// The folder as text.
    pub fn name(&self) -> String {
        self.folder.display().to_string()
    }
}

/// Returns the groups of this process that have limits, including all parent groups, innermost first.
pub fn groups() -> Vec<Group> {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let memory = read("/proc/meminfo").unwrap_or_default();
    let swap_free = field(&memory, "SwapFree").unwrap_or(0) * 1024;
    folders(&own, &mounts)
        .into_iter()
        .filter_map(|folder| limits_of(folder, swap_free))
        .collect()
}

/// Returns the folders of the groups named in `/proc/self/cgroup`, found through `/proc/self/mountinfo`, each
/// followed by its parents.
fn folders(own: &str, mounts: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        // The version 2 hierarchy has an empty list of controllers. Of version 1, only the memory and pids
        // hierarchies matter.
        let of_interest = controllers.is_empty()
            || controllers
                .split(',')
                .any(|it| it == "memory" || it == "pids");
        if !of_interest {
            continue;
        }
        for mount in mounts.lines() {
            let Some((root, point)) = mount_of(mount, controllers) else {
                continue;
            };
            // Inside a container, the path may lie outside of the mounted part and cannot be read. The limits of the
            // mount itself can.
            let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            let innermost: PathBuf = Path::new(point)
                .components()
                .chain(inside.components())
                .collect();
            let around = innermost
                .ancestors()
                .take_while(|folder| folder.starts_with(point));
            folders.extend(around.map(Path::to_owned));
            break;
        }
    }
    folders
}

/// Returns the root and the mount point of a `mountinfo` line if it mounts the hierarchy with these controllers.
fn mount_of<'a>(line: &'a str, controllers: &str) -> Option<(&'a str, &'a str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let matches = match controllers {
        "" => name == "cgroup2",
        _ => {
            name == "cgroup"
                && controllers
                    .split(',')
                    .all(|controller| options.split(',').any(|option| option == controller))
        }
    };
    matches.then_some((root, point))
}

fn limits_of(folder: PathBuf, swap_free: u64) -> Option<Group> {
    let threads = number(folder.join("pids.max"))
        .map(|limit| (number(folder.join("pids.current")).unwrap_or(0), limit));
    let memory = memory_of(&folder, swap_free);
    (threads.is_some() || memory.is_some()).then_some(Group {
        folder,
        threads,
        memory,
    })
}

/// Version 1 reports "no limit" as a number near the largest; limits from here on count as none.
const UNLIMITED: u64 = 1 << 60;

fn memory_of(folder: &Path, swap_free: u64) -> Option<GroupMemory> {
    let statistics = read(folder.join("memory.stat")).unwrap_or_default();
    let statistic = |key| field(&statistics, key).unwrap_or(0);
    let (limit, file, used, of_files, swap);
    if let Some(max) = number(folder.join("memory.max")) {
        (limit, file) = (max, "memory.max");
        used = number(folder.join("memory.current")).unwrap_or(0);
        of_files = statistic("active_file") + statistic("inactive_file");
        let swapped = number(folder.join("memory.swap.current")).unwrap_or(0);
        // Without a limit of its own, the group may use all of the host's swap.
        swap = number(folder.join("memory.swap.max"))
            .map_or(u64::MAX, |max| max.saturating_sub(swapped));
    } else {
        (limit, file) = (
            number(folder.join("memory.limit_in_bytes"))?,
            "memory.limit_in_bytes",
        );
        used = number(folder.join("memory.usage_in_bytes")).unwrap_or(0);
        of_files = statistic("total_active_file") + statistic("total_inactive_file");
        // Version 1 has one limit for memory and swap together.
        swap = number(folder.join("memory.memsw.limit_in_bytes"))
            .map_or(u64::MAX, |max| max.saturating_sub(limit));
    }
    (limit < UNLIMITED).then(|| GroupMemory {
        limit,
        used: used.saturating_sub(of_files),
        swap: swap.min(swap_free),
        file,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(own: &str, mounts: &str) -> Vec<String> {
        folders(own, mounts)
            .iter()
            .map(|folder| folder.display().to_string())
            .collect()
    }

    #[test]
    fn groups_are_found_with_those_around_them() {
        let version_2 =
            "25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            found("0::/user.slice/run-1.scope\n", version_2),
            [
                "/sys/fs/cgroup/user.slice/run-1.scope",
                "/sys/fs/cgroup/user.slice",
                "/sys/fs/cgroup"
            ]
        );
        let version_1 = "30 1 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                         31 1 0:26 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n\
                         32 1 0:27 / /sys/fs/cgroup/pids rw - cgroup none rw,pids\n";
        assert_eq!(
            found(
                "9:name=systemd:/x\n8:pids:/\n4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/\n",
                version_1
            ),
            [
                "/sys/fs/cgroup/pids",
                "/sys/fs/cgroup/memory/a/b",
                "/sys/fs/cgroup/memory/a",
                "/sys/fs/cgroup/memory"
            ]
        );
        // In a container, the mount's root is the group itself; or `/proc/self/cgroup` names a path outside of the
        // mount.
        let container = "31 1 0:26 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(
            found("4:memory:/docker/1f/in\n", container),
            ["/sys/fs/cgroup/memory/in", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(found("4:memory:/\n", container), ["/sys/fs/cgroup/memory"]);
        assert!(found("nonsense\n", "nonsense\n").is_empty());
    }

    #[test]
    fn a_group_has_the_memory_that_its_files_say() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(limits_of(folder.path().to_owned(), 1 << 30), None);
        write("memory.max", "max\n");
        assert_eq!(limits_of(folder.path().to_owned(), 1 << 30), None);
        write("memory.max", "1000000\n");
        write("memory.current", "700000\n");
        write(
            "memory.stat",
            "anon 400000\ninactive_file 200000\nactive_file 100000\n",
        );
        write("memory.swap.max", "50000\n");
        write("pids.max", "7\n");
        write("pids.current", "3\n");
        let group = limits_of(folder.path().to_owned(), 1 << 30).unwrap();
        assert_eq!(group.threads, Some((3, 7)));
        assert_eq!(group.memory.unwrap().room(), 650_000);
        assert_eq!(
            limits_of(folder.path().to_owned(), 0)
                .unwrap()
                .memory
                .unwrap()
                .room(),
            600_000
        );
    }
}
