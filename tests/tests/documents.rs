//! The documents name functions, files and sections that exist.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files below a folder whose names end in `.extension`, without hidden folders and build results.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            if !name.starts_with('.') && name != "target" {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found
}

/// README and everything in `docs/` and the root that is Markdown.
fn documents() -> Vec<PathBuf> {
    let mut found = files(&root().join("docs"), "md");
    let in_root = fs::read_dir(root()).unwrap().map(|it| it.unwrap().path());
    found.extend(in_root.filter(|path| path.extension().is_some_and(|it| it == "md")));
    assert!(found.len() > 15, "{found:?}");
    found
}

/// For each function of the product, the files and folders (by their names without `.rs`) that it is in.
fn functions() -> HashMap<String, HashSet<String>> {
    let mut found: HashMap<String, HashSet<String>> = HashMap::new();
    for package in ["hmm-backend", "devices", "vmm"] {
        let sources = root().join(package).join("src");
        for file in files(&sources, "rs") {
            let text = fs::read_to_string(&file).unwrap();
            let inside = file.strip_prefix(&sources).unwrap().with_extension("");
            let modules = inside.iter().map(|it| it.to_string_lossy().into_owned());
            let modules: HashSet<String> = modules.collect();
            for (_, rest) in text.match_indices("fn ").map(|(at, _)| text.split_at(at)) {
                let name = rest[3..].split(|c: char| c != '_' && !c.is_alphanumeric());
                let name = name.into_iter().next().unwrap_or_default().to_owned();
                found.entry(name).or_default().extend(modules.clone());
            }
        }
    }
    found
}

/// The names of functions, as `file_or_folder::function`, in a text.
fn named(text: &str) -> Vec<(&str, &str)> {
    let word = |it: &str| !it.is_empty() && it.chars().all(|c| c == '_' || c.is_ascii_lowercase());
    let spans = text.split('`').skip(1).step_by(2);
    let pairs = spans.filter_map(|span| span.split_once("::"));
    pairs
        .filter(|(module, function)| word(module) && word(function))
        .collect()
}

#[test]
fn the_architecture_names_functions_that_exist() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (functions, mut wrong) = (functions(), Vec::new());
    let names = named(&text);
    for (module, function) in &names {
        let places = functions.get(*function);
        if !places.is_some_and(|places| places.contains(*module)) {
            wrong.push(format!("no such function: {module}::{function}"));
        }
    }
    let (_, table) = text.split_once("| race | answer | where |\n").unwrap();
    let rows = table.lines().skip(1).take_while(|it| it.starts_with('|'));
    for row in rows.filter(|row| named(row).is_empty()) {
        wrong.push(format!("no function: {row}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(names.len() > 80, "{}", names.len());
}

/// Paths of source files in the architecture are from the root of the workspace, or from `src` of a package.
#[test]
fn the_architecture_names_files_that_exist() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let starts = ["", "hmm-backend/src", "devices/src", "vmm/src"].map(|it| root().join(it));
    let spans = text.split('`').skip(1).step_by(2);
    let files: Vec<&str> = spans
        .filter(|span| span.contains('/') && span.ends_with(".rs"))
        .collect();
    let missing = |file: &&&str| !starts.iter().any(|start| start.join(file).exists());
    let wrong: Vec<_> = files.iter().filter(missing).collect();
    assert!(wrong.is_empty(), "no such files: {wrong:?}");
    assert!(files.len() > 20, "{}", files.len());
}

/// The anchors that a page's headings have.
fn anchors(text: &str) -> HashSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words
            .chars()
            .filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            })
            .collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            checked += 1;
            if !target.exists() {
                wrong.push(format!("{}: no file {link}", document.display()));
            } else if !anchor.is_empty()
                && !anchors(&fs::read_to_string(&target).unwrap()).contains(anchor)
            {
                wrong.push(format!("{}: no section {link}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 50, "{checked}");
}
