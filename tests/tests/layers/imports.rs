//! The imports of a package's files, read from its sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::Visit;
use syn::{Attribute, Item, UseTree, Visibility};

/// One file uses something that another one defines.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: String,
    pub to: String,
    pub what: String,
}

/// The files of a package and their imports; tests are left out.
pub struct Graph {
    pub files: usize,
    pub imports: BTreeSet<Import>,
}

/// A module: its file, what it defines, and the names that it gives to what others define.
#[derive(Default)]
struct Module {
    file: String,
    defines: BTreeSet<String>,
    names: BTreeMap<String, Vec<String>>,
    modules: BTreeSet<String>,
    /// What it uses, as paths from where they stand.
    uses: Vec<Vec<String>>,
}

impl Graph {
    /// Of a package of this repository.
    pub fn of(package: &str) -> Graph {
        let src = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(package)
            .join("src");
        let mut sources = Vec::new();
        read(&src, "", &mut sources);
        let sources: Vec<(&str, &str)> = sources.iter().map(|(f, s)| (&**f, &**s)).collect();
        Graph::of_sources(&sources)
    }

    /// Of these files, by their paths below `src`.
    pub fn of_sources(sources: &[(&str, &str)]) -> Graph {
        let mut modules: BTreeMap<Vec<String>, Module> = BTreeMap::new();
        for (file, text) in sources {
            let parsed = syn::parse_file(text).unwrap_or_else(|e| panic!("{file}: {e}"));
            let path = module_path(file);
            collect(&path, file, &parsed.items, &mut modules);
        }
        let reachable = reachable(&modules);
        let mut imports = BTreeSet::new();
        for path in &reachable {
            let module = &modules[path];
            for used in &module.uses {
                let Some((file, what)) = resolve(&modules, path, used, 0) else {
                    continue;
                };
                if file != module.file {
                    let from = module.file.clone();
                    imports.insert(Import {
                        from,
                        to: file,
                        what,
                    });
                }
            }
        }
        // One import for each pair of files, with all that is used.
        let mut pairs: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for Import { from, to, what } in imports {
            pairs.entry((from, to)).or_default().push(what);
        }
        let files: BTreeSet<&str> = reachable.iter().map(|path| &*modules[path].file).collect();
        Graph {
            files: files.len(),
            imports: pairs
                .into_iter()
                .map(|((from, to), what)| Import {
                    from,
                    to,
                    what: what.join(", "),
                })
                .collect(),
        }
    }

    /// The largest sets of files that all import each other, directly or not; those of one file are none.
    pub fn circles(&self) -> Vec<BTreeSet<&str>> {
        let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for import in &self.imports {
            next.entry(&import.from).or_default().push(&import.to);
        }
        let reach = |start: &'_ str| {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![start.to_owned()]);
            while let Some(file) = todo.pop() {
                for to in next.get(&*file).into_iter().flatten() {
                    if seen.insert(*to) {
                        todo.push((*to).to_owned());
                    }
                }
            }
            seen
        };
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            next.keys().map(|file| (*file, reach(file))).collect();
        let mut circles: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
        for (file, others) in &reached {
            let back = |other: &&&str| reached.get(**other).is_some_and(|r| r.contains(file));
            let circle: BTreeSet<&str> = others.iter().filter(back).copied().collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }
}

fn read(folder: &Path, name: &str, sources: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            read(&path, &format!("{name}{file}/"), sources);
        } else if file.ends_with(".rs") {
            sources.push((format!("{name}{file}"), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The module that a file is. A binary of its own (`main.rs`) is a root beside the library's.
fn module_path(file: &str) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap();
    let mut path: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if path == ["lib"] {
        return Vec::new();
    }
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

/// The modules that are compiled outside tests, from the roots down.
fn reachable(modules: &BTreeMap<Vec<String>, Module>) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut todo = vec![Vec::new(), vec!["main".to_owned()]];
    while let Some(path) = todo.pop() {
        let Some(module) = modules.get(&path) else {
            continue;
        };
        let parent = match path == ["main"] {
            true => Vec::new(),
            false => path.clone(),
        };
        for child in &module.modules {
            todo.push([&parent[..], std::slice::from_ref(child)].concat());
        }
        found.push(path);
    }
    found
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = match &attribute.meta {
            syn::Meta::List(list) if attribute.path().is_ident("cfg") => list.tokens.to_string(),
            _ => return false,
        };
        let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).collect();
        words.contains(&"test") && !text.replace(' ', "").contains("not(test")
    })
}

fn collect(
    path: &[String],
    file: &str,
    items: &[Item],
    modules: &mut BTreeMap<Vec<String>, Module>,
) {
    let mut module = Module {
        file: file.to_owned(),
        ..Module::default()
    };
    for item in items {
        let (attributes, name) = match item {
            Item::Mod(it) => (&it.attrs, Some(&it.ident)),
            Item::Struct(it) => (&it.attrs, Some(&it.ident)),
            Item::Enum(it) => (&it.attrs, Some(&it.ident)),
            Item::Union(it) => (&it.attrs, Some(&it.ident)),
            Item::Trait(it) => (&it.attrs, Some(&it.ident)),
            Item::Type(it) => (&it.attrs, Some(&it.ident)),
            Item::Const(it) => (&it.attrs, Some(&it.ident)),
            Item::Static(it) => (&it.attrs, Some(&it.ident)),
            Item::Fn(it) => (&it.attrs, Some(&it.sig.ident)),
            Item::Use(it) => (&it.attrs, None),
            Item::Impl(it) => (&it.attrs, None),
            Item::Macro(it) => (&it.attrs, it.ident.as_ref()),
            _ => continue,
        };
        if is_test(attributes) {
            continue;
        }
        match item {
            Item::Mod(it) => {
                let name = it.ident.to_string();
                if let Some((_, items)) = &it.content {
                    let inner = [path, std::slice::from_ref(&name)].concat();
                    collect(&inner, file, items, modules);
                }
                module.modules.insert(name);
            }
            Item::Use(it) => {
                let mut leaves = Vec::new();
                flatten(&it.tree, &mut Vec::new(), &mut leaves);
                let public = !matches!(it.vis, Visibility::Inherited);
                for (name, used) in leaves {
                    // What a module passes on is not used by it.
                    if public {
                        module.names.insert(name, used);
                    } else {
                        module.names.entry(name).or_insert_with(|| used.clone());
                        module.uses.push(used);
                    }
                }
            }
            _ => {
                if let Some(name) = name {
                    module.defines.insert(name.to_string());
                }
                Paths(&mut module.uses).visit_item(item);
            }
        }
    }
    modules.insert(path.to_vec(), module);
}

/// The names that a `use` makes, with what they stand for.
fn flatten(tree: &UseTree, prefix: &mut Vec<String>, leaves: &mut Vec<(String, Vec<String>)>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, leaves);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            let last = prefix.last().cloned().unwrap_or_default();
            leaves.push((last, prefix.clone()));
        }
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            leaves.push((name.clone(), [&prefix[..], &[name]].concat()));
        }
        UseTree::Rename(rename) => {
            let path = [&prefix[..], &[rename.ident.to_string()]].concat();
            leaves.push((rename.rename.to_string(), path));
        }
        UseTree::Glob(_) => leaves.push(("*".to_owned(), prefix.clone())),
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, prefix, leaves);
            }
        }
    }
}

/// Collects paths that name their crate or a module in full.
struct Paths<'a>(&'a mut Vec<Vec<String>>);

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if segments.len() > 1 {
            self.0.push(segments);
        }
        syn::visit::visit_path(self, path);
    }
}

/// The file that defines what a path names, and its name there.
fn resolve(
    modules: &BTreeMap<Vec<String>, Module>,
    at: &[String],
    path: &[String],
    depth: usize,
) -> Option<(String, String)> {
    if depth > 20 {
        return None;
    }
    let mut here = match at == ["main"] {
        true => Vec::new(),
        false => at.to_vec(),
    };
    let mut rest = path;
    match rest.first().map(String::as_str)? {
        "crate" => {
            here = Vec::new();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|first| first == "super") {
                here.pop();
                rest = &rest[1..];
            }
        }
        _ => {}
    }
    loop {
        let root = match here.is_empty() && at == ["main"] {
            true => vec!["main".to_owned()],
            false => here.clone(),
        };
        let module = modules.get(&root).or_else(|| modules.get(&here))?;
        let Some(first) = rest.first() else {
            return Some((
                module.file.clone(),
                here.last().cloned().unwrap_or_default(),
            ));
        };
        if module.modules.contains(first) {
            here.push(first.clone());
            rest = &rest[1..];
        } else if module.defines.contains(first) {
            return Some((module.file.clone(), first.clone()));
        } else if let Some(stands_for) = module.names.get(first) {
            let full = [stands_for, &rest[1..]].concat();
            return match full == path && here == at {
                true => None,
                false => resolve(modules, &root, &full, depth + 1),
            };
        } else {
            return None;
        }
    }
}
