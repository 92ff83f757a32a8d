use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;

/// How an output is opened.
type Open = fn(&mut Files, &Path) -> Result<Output, OutputError>;

fn whole(files: &mut Files, path: &Path) -> Result<Output, OutputError> {
    files.whole("the page", path)
}

fn growing(files: &mut Files, path: &Path) -> Result<Output, OutputError> {
    files.growing("the page", path)
}

fn live(files: &mut Files, path: &Path) -> Result<Output, OutputError> {
    files.live("the page", path)
}

const ALL: [Open; 3] = [whole, growing, live];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn write(open: Open, path: &Path, text: &str) {
    let mut output = open(&mut Files::default(), path).unwrap();
    output.write_all(text.as_bytes()).unwrap();
    output.commit().unwrap();
}

fn refusal(files: &mut Files, open: Open, path: &Path) -> String {
    open(files, path).unwrap_err().to_string()
}

#[test]
fn what_was_there_stays_until_all_is_written() {
    for open in [whole as Open, growing] {
        let folder = Folder::new();
        let path = folder.file("page", "one");
        let mut output = open(&mut Files::default(), &path).unwrap();
        assert!(output.replaces());
        output.write_all(b"half").unwrap();
        assert_eq!(text(&path), "one");
        drop(output);
        assert_eq!((text(&path).as_str(), folder.names().len()), ("one", 1));
        let mut output = open(&mut Files::default(), &path).unwrap();
        output.write_all(b"half").unwrap();
        output.keep_part().unwrap();
        assert_eq!((text(&path).as_str(), folder.names().len()), ("one", 1));
        write(open, &path, "two");
        assert_eq!((text(&path).as_str(), folder.names().len()), ("two", 1));
    }
}

#[test]
fn what_replaces_nothing_may_stay_in_part() {
    let folder = Folder::new();
    let path = folder.path("page");
    let part = |open: Open| {
        let mut output = open(&mut Files::default(), &path).unwrap();
        assert!(!output.replaces());
        output.write_all(b"half").unwrap();
        output
    };
    drop(part(whole));
    assert_eq!(folder.names(), [""; 0]);
    part(whole).keep_part().unwrap();
    assert_eq!(text(&path), "half");
    for open in [growing as Open, live] {
        fs::remove_file(&path).unwrap();
        let output = part(open);
        // Others can read it already.
        assert_eq!(text(&path), "half");
        drop(output);
        assert_eq!(text(&path), "half");
    }
}

#[test]
fn what_was_never_written_leaves_nothing() {
    for open in ALL {
        let folder = Folder::new();
        drop(open(&mut Files::default(), &folder.path("new")).unwrap());
        assert_eq!(folder.names(), [""; 0]);
        let old = folder.file("old", "old");
        drop(open(&mut Files::default(), &old).unwrap());
        assert_eq!((text(&old).as_str(), folder.names().len()), ("old", 1));
        // A run whose guest says nothing has an empty console.
        for name in ["new", "old"] {
            let output = open(&mut Files::default(), &folder.path(name)).unwrap();
            output.commit().unwrap();
            assert_eq!(text(&folder.path(name)), "");
        }
    }
}

#[test]
fn a_live_output_is_there_while_it_is_written() {
    let folder = Folder::new();
    let path = folder.file("console", "old text");
    let inode = fs::metadata(&path).unwrap().ino();
    let mut output = live(&mut Files::default(), &path).unwrap();
    assert_eq!(text(&path), "old text");
    output.write_all(b"new").unwrap();
    assert_eq!(text(&path), "new");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
}

#[test]
fn links_modes_and_names_stay() {
    for open in ALL {
        let folder = Folder::new();
        let real = folder.file("real", "old");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        let link = folder.path("link");
        symlink("real", &link).unwrap();
        write(open, &link, "through a link");
        assert!(link.is_symlink());
        assert_eq!(text(&real), "through a link");
        assert_eq!(real.metadata().unwrap().mode() & 0o7777, 0o640);

        let other = folder.path("other");
        fs::hard_link(&real, &other).unwrap();
        write(
            open,
            &real,
            "under two names, shorter or longer than before",
        );
        assert_eq!(text(&other), text(&real));
        write(open, &other, "short");
        assert_eq!(text(&real), "short");
        assert_eq!(real.metadata().unwrap().nlink(), 2);
        assert_eq!(folder.names(), ["link", "other", "real"]);

        // A link that leads nowhere yet.
        let dangling = folder.path("dangling");
        symlink("./nowhere", &dangling).unwrap();
        write(open, &dangling, "new");
        assert!(dangling.is_symlink());
        assert_eq!(text(&folder.path("nowhere")), "new");
    }
}

#[test]
fn an_owner_and_attributes_stay() {
    let folder = Folder::new();
    let path = folder.file("page", "old");
    // Only root can give files away, and not every file system has attributes.
    let gave = std::os::unix::fs::chown(&path, Some(1234), Some(2345)).is_ok();
    let marked =
        rustix::fs::setxattr(&path, "user.note", b"kept", rustix::fs::XattrFlags::CREATE).is_ok();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
    let before = path.metadata().unwrap();
    write(whole, &path, "new");
    let after = path.metadata().unwrap();
    assert_eq!(text(&path), "new");
    if gave {
        assert_eq!((after.uid(), after.gid()), (1234, 2345));
    }
    assert_eq!((before.uid(), before.gid()), (after.uid(), after.gid()));
    if marked {
        let mut value = [0u8; 4];
        assert_eq!(rustix::fs::getxattr(&path, "user.note", &mut value), Ok(4));
    } else {
        assert_eq!(before.mode(), after.mode());
    }
}

#[test]
fn new_files_have_the_mode_that_any_program_gives_them() {
    let folder = Folder::new();
    let plain = folder.file("plain", "").metadata().unwrap().mode();
    for (number, open) in ALL.into_iter().enumerate() {
        let path = folder.path(&number.to_string());
        write(open, &path, "new");
        assert_eq!(path.metadata().unwrap().mode(), plain);
    }
}

#[test]
fn a_file_of_the_users_is_no_temporary_one() {
    let folder = Folder::new();
    let page = folder.file("page", "old");
    for name in ["page.new", "page.part", "page.tmp"] {
        symlink("victim", folder.path(name)).unwrap();
    }
    folder.file("victim", "victim");
    for open in ALL {
        write(open, &page, "new");
    }
    assert_eq!(text(&folder.path("victim")), "victim");
    let names = ["page", "page.new", "page.part", "page.tmp", "victim"];
    assert_eq!(folder.names(), names);
}

#[test]
fn an_input_is_refused_under_any_name() {
    for open in ALL {
        let folder = Folder::new();
        let input = folder.file("input", "precious");
        fs::hard_link(&input, folder.path("hard")).unwrap();
        symlink("input", folder.path("soft")).unwrap();
        symlink("no-input", folder.path("dangling")).unwrap();
        let mut files = Files::default();
        files.reads("the trace", &input);
        files.reads("the disk", &folder.path("no-input"));
        for name in ["input", "./input", "hard", "soft"] {
            let message = refusal(&mut files, open, &folder.path(name));
            assert!(message.contains("that is the trace itself"), "{message}");
        }
        for name in ["no-input", "./no-input", "dangling"] {
            let message = refusal(&mut files, open, &folder.path(name));
            assert!(message.contains("that is the disk itself"), "{message}");
        }
        let mut files = Files::default();
        files.reads_open("the input", File::open(&input).unwrap());
        let message = refusal(&mut files, open, &folder.path("hard"));
        assert!(message.contains("that is the input itself"), "{message}");
        assert_eq!(text(&input), "precious");
    }
}

#[test]
fn two_outputs_are_not_one_file() {
    for (first, second) in ALL
        .into_iter()
        .flat_map(|first| ALL.map(|second| (first, second)))
    {
        let folder = Folder::new();
        symlink("new", folder.path("dangling")).unwrap();
        let old = folder.file("old", "old");
        fs::hard_link(&old, folder.path("hard")).unwrap();
        for (one, other) in [("new", "dangling"), ("dangling", "./new"), ("old", "hard")] {
            let mut files = Files::default();
            let kept = first(&mut files, &folder.path(one)).unwrap();
            let message = refusal(&mut files, second, &folder.path(other));
            assert!(message.contains("where the page goes"), "{message}");
            drop(kept);
        }
        assert_eq!(folder.names(), ["dangling", "hard", "old"]);
        let mut files = Files::default();
        let _null = first(&mut files, Path::new("/dev/null")).unwrap();
        second(&mut files, Path::new("/dev/null")).unwrap();
    }
}

#[test]
fn folders_and_places_that_do_not_exist_are_refused() {
    for open in ALL {
        let folder = Folder::new();
        let mut files = Files::default();
        let mut refused = |name: &str| refusal(&mut files, open, &folder.path(name));
        assert!(refused(".").contains("it is a folder"));
        assert!(refused("new/").contains("it would be a folder"));
        assert!(refused("no/such").contains("its folder does not exist"));
        symlink("loop", folder.path("loop")).unwrap();
        assert!(refused("loop").contains("writing the page to"));
        assert!(refusal(&mut files, open, Path::new("")).contains("names no file"));
    }
}

#[test]
fn devices_are_written_to_as_they_are() {
    for open in ALL {
        write(open, Path::new("/dev/null"), "nothing");
        let folder = Folder::new();
        symlink("/dev/full", folder.path("full")).unwrap();
        for path in [Path::new("/dev/full"), &folder.path("full")] {
            let mut output = open(&mut Files::default(), path).unwrap();
            let error = output.write_all(b"x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        assert!(folder.path("full").is_symlink());
    }
}

/// Runs a test of this file in a shell that has prepared its surroundings.
fn inside(script: &str, test: &str, folder: &Folder) -> String {
    let output = Command::new("bash")
        .arg("-c")
        .arg(script)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("output::tests::{test}"),
            "--ignored",
            "--nocapture",
        ])
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    assert!(output.status.success(), "{text:?}");
    text[0].clone()
}

#[test]
#[ignore = "part of descriptors_are_shared_and_never_opened_again"]
fn inside_with_files_as_descriptors() {
    symlink("/proc/self/fd/1", "link").unwrap();
    for open in ALL {
        for (number, path) in ["-", "/dev/stdout", "/proc/self/fd/1", "link", "stdout"]
            .into_iter()
            .enumerate()
        {
            let mut files = Files::default();
            write_with(&mut files, open, path, &format!("data {number}\n"));
            assert!(files.use_stdout(), "{path}");
        }
        for path in ["/dev/stderr", "stderr", "/dev/fd/7"] {
            let mut files = Files::default();
            write_with(&mut files, open, path, "data\n");
            assert!(!files.use_stdout(), "{path}");
        }
    }
    let mut files = Files::default();
    files.reads("the trace", Path::new("stderr"));
    files.prints("the summary").unwrap();
    files.reads("the trace", Path::new("stdout"));
    let message = files.prints("the summary").unwrap_err().to_string();
    let expected = "writing the summary to standard output: that is the trace itself (stdout)";
    assert!(message.contains(expected), "{message}");
    let mut files = Files::default();
    let _first = whole(&mut files, Path::new("-")).unwrap();
    let message = refusal(&mut files, whole, Path::new("stdout"));
    assert!(message.contains("standard output"), "{message}");
    let message = refusal(&mut Files::default(), whole, Path::new("/dev/fd/8"));
    assert!(message.contains("for reading only"), "{message}");
}

fn write_with(files: &mut Files, open: Open, path: &str, text: &str) {
    let mut output = open(files, Path::new(path)).unwrap();
    output.write_all(text.as_bytes()).unwrap();
    output.commit().unwrap();
}

#[test]
fn descriptors_are_shared_and_never_opened_again() {
    let folder = Folder::new();
    let script = "echo one > stdout; echo two > stderr; echo three > seven
        \"$0\" \"$@\" >> stdout 2>> stderr 7>> seven 8< seven";
    inside(script, "inside_with_files_as_descriptors", &folder);
    let stdout = text(&folder.path("stdout"));
    // The test harness writes there, too.
    assert!(stdout.starts_with("one\n"), "{stdout}");
    let data = stdout.lines().filter(|line| line.starts_with("data "));
    let numbers: String = data.map(|line| &line[5..]).collect();
    assert_eq!(numbers, "012340123401234");
    let stderr = text(&folder.path("stderr"));
    assert!(stderr.starts_with("two\n"), "{stderr}");
    assert_eq!(stderr.matches("data\n").count(), 6);
    assert_eq!(text(&folder.path("seven")), "three\ndata\ndata\ndata\n");
}

#[test]
#[ignore = "part of a_full_disk_costs_nothing_that_was_there"]
fn inside_with_a_full_disk() {
    let data = vec![b'x'; 1 << 20];
    for name in ["once", "twice"] {
        for open in [whole as Open, growing] {
            let mut output = open(&mut Files::default(), Path::new(name)).unwrap();
            let written = output.write_all(&data).and_then(|()| output.commit());
            let error = written.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(text(Path::new(name)), "old\n", "{name}");
        }
    }
    // There is room for the data aside, but not in its place.
    let mut output = whole(&mut Files::default(), Path::new("bound")).unwrap();
    output.write_all(&data).unwrap();
    assert!(output.commit().is_err());
    assert_eq!(text(Path::new("bound")), "old\n");
}

#[test]
fn a_full_disk_costs_nothing_that_was_there() {
    let folder = Folder::new();
    // A file that is mounted on another one cannot be replaced, and is on another file system than its folder.
    let script = "mkdir full && mount -t tmpfs -o size=64k none full && cd full &&
        echo old | tee once > twice && ln twice twin &&
        mkdir ../large && mount -t tmpfs none ../large && echo old > bound && echo > ../large/bound &&
        mount --bind bound ../large/bound && cd ../large &&
        ln -s ../full/once ../full/twice . && \"$0\" \"$@\"";
    let script = format!("unshare -m bash -c '{script}' \"$0\" \"$@\"");
    let said = inside(&script, "inside_with_a_full_disk", &folder);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "part of what_cannot_be_written_is_refused_at_once"]
fn inside_without_permission() {
    for open in ALL {
        for name in ["read-only/new", "read-only/old", "mine/locked"] {
            let message = refusal(&mut Files::default(), open, Path::new(name));
            assert!(message.contains("writing the page to"), "{message}");
        }
        // The folder cannot be written, but the file can.
        write(open, Path::new("theirs/open"), "new");
        assert_eq!(text(Path::new("theirs/open")), "new");
    }
}

#[test]
fn what_cannot_be_written_is_refused_at_once() {
    let folder = Folder::new();
    // As another user where that is possible.
    let script = "mkdir read-only mine theirs && mount -t tmpfs none read-only &&
        echo old > read-only/old && mount -o remount,ro read-only &&
        echo old > mine/locked && chmod 444 mine/locked && chmod 777 mine . &&
        echo longer old text > theirs/open && chmod 666 theirs/open && chmod 755 theirs &&
        cp \"$0\" program && shift 0 && setpriv --reuid 1234 --clear-groups ./program \"$@\"";
    let script = format!("unshare -m bash -c '{script}' \"$0\" \"$@\"");
    let said = inside(&script, "inside_without_permission", &folder);
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(text(&folder.path("mine/locked")), "old\n");
}

/// Two runs that write one trace at the same time would leave a mixture, or the one that ends last.
#[test]
fn a_file_that_another_process_writes_is_refused() {
    let busy = "another process is writing it";
    for open in [growing as Open, live] {
        let folder = Folder::new();
        let path = folder.path("page");
        let mut first = open(&mut Files::default(), &path).unwrap();
        let empty = refusal(&mut Files::default(), open, &path);
        assert!(empty.contains(busy), "{empty}");
        first.write_all(b"half").unwrap();
        let begun = refusal(&mut Files::default(), open, &path);
        assert!(begun.contains(busy), "{begun}");
        first.commit().unwrap();
        assert_eq!(text(&path), "half");
        write(open, &path, "next");
    }
    for open in ALL {
        let folder = Folder::new();
        let path = folder.file("page", "one");
        let first = open(&mut Files::default(), &path).unwrap();
        let replaced = refusal(&mut Files::default(), open, &path);
        assert!(replaced.contains(busy), "{replaced}");
        drop(first);
        assert_eq!((text(&path).as_str(), folder.names().len()), ("one", 1));
    }
}

/// A process that another thread is just starting has the descriptors of this one.
#[test]
fn what_a_beginning_process_has_keeps_no_file_locked() {
    for open in [growing as Open, live] {
        let folder = Folder::new();
        let path = folder.path("page");
        for _ in 0..2 {
            let mut output = open(&mut Files::default(), &path).unwrap();
            let _of_the_process = output.file().try_clone().unwrap();
            output.write_all(b"one").unwrap();
            output.commit().unwrap();
            write(open, &path, "two");
        }
    }
}

#[test]
fn what_users_write_by_hand_is_not_replaced() {
    let folder = Folder::new();
    for (name, kind) in [
        ("c.toml", "a configuration or sweep file"),
        ("p.luau", "a policy script"),
        ("P.LUAU", "a policy script"),
    ] {
        let path = folder.file(name, "mine");
        let link = folder.path(&format!("{name}.json"));
        symlink(&path, &link).unwrap();
        let named = folder.path(&format!("link-{name}"));
        symlink(folder.file("data", "mine"), &named).unwrap();
        let expected = format!("an output does not replace {kind}; give another name");
        for open in ALL {
            for path in [&path, &link, &named] {
                let message = refusal(&mut Files::default(), open, path);
                assert!(message.ends_with(&expected), "{message}");
                assert_eq!(text(path), "mine");
            }
        }
        let message = refusal(&mut Files::default(), whole, &link);
        let leads = format!("it leads to {}; an output", path.display());
        assert!(message.contains(&leads), "{message}");
        let appended = Files::default().appended("the journal", &path);
        assert!(appended.unwrap_err().to_string().ends_with(&expected));
    }
    // A new file may have any name, and others than these are replaced.
    let new = folder.path("new.toml");
    for (open, path) in [(whole as Open, new), (growing, folder.file("p.csv", "old"))] {
        write(open, &path, "data");
        assert_eq!(text(&path), "data");
    }
}
