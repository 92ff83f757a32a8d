//! Whether elements are closed in the order in which they were opened, and whether references have something to refer to.

const VOID: [&str; 3] = ["meta", "link", "wbr"];

pub fn check(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    while let Some(at) = rest.find('<') {
        let end = rest[at..].find('>').expect("an unclosed tag") + at;
        let tag = &rest[at + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/'])
            .next()
            .unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    for reference in html.split("url(#").skip(1) {
        let id = reference.split(')').next().unwrap();
        assert!(html.contains(&format!("id=\"{id}\"")), "there is no {id}");
    }
}
