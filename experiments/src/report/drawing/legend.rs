//! Legends, below plots.

use super::svg::{Anchor, Svg, text_width};

/// Returns the names of policies in a legend: of a script or a placement in a folder, the file's name is enough, unless two policies
/// would have the same name then.
pub(crate) fn names(policies: &[&str]) -> Vec<String> {
    let short: Vec<String> = policies
        .iter()
        .map(|policy| without_folders(policy))
        .collect();
    let is_unique = |name: &String| short.iter().filter(|other| *other == name).count() == 1;
    let names = policies.iter().zip(&short);
    names
        .map(|(policy, short)| match is_unique(short) {
            true => short.clone(),
            false => (*policy).to_owned(),
        })
        .collect()
}

/// Returns the policy, of each path in it only what comes after the last `/`.
fn without_folders(policy: &str) -> String {
    let is_separator = |c: char| matches!(c, '+' | ':' | ',' | '=');
    let words = policy.split_inclusive(is_separator);
    words
        .map(|word| word.rsplit('/').next().unwrap_or(word))
        .collect()
}

/// Adds a legend below everything that is drawn; `sample` draws the sample of an entry, 26 wide, around a place.
pub(crate) fn legend(
    svg: &mut Svg,
    left: f64,
    names: &[String],
    sample: impl Fn(&mut Svg, usize, (f64, f64)),
) {
    const LINE: f64 = 20.0;
    let widest = names
        .iter()
        .map(|name| text_width(name))
        .fold(0.0, f64::max)
        + 50.0;
    let columns = (((svg.width() - left) / widest) as usize).clamp(1, names.len().max(1));
    let top = svg.height();
    for (index, name) in names.iter().enumerate() {
        let x = left + (index % columns) as f64 * widest;
        let y = top + (index / columns) as f64 * LINE + 8.0;
        sample(svg, index, (x + 13.0, y));
        svg.text((x + 34.0, y + 4.0), Anchor::Start, "number", name);
    }
    svg.grow(names.len().div_ceil(columns) as f64 * LINE + 4.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scripts_folder_is_left_out_where_its_name_tells_it_apart() {
        let policies = [
            "density+lru",
            "a/long/path/x.luau:window=4+lru",
            "a/y.luau",
            "b/y.luau",
            "static:file=/tmp/place.txt,hold=2ms",
        ];
        assert_eq!(
            names(&policies),
            [
                "density+lru",
                "x.luau:window=4+lru",
                "a/y.luau",
                "b/y.luau",
                "static:file=place.txt,hold=2ms",
            ]
        );
    }
}
