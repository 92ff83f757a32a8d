//! What the TOML files of users have in common: configurations of runs, and sweeps.

/// Returns what is wrong in a file, and where, without the parser's claim that it is no TOML: most values that are wrong parse.
pub fn wrong(error: &toml::de::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("TOML parse error ") {
        Some(place) => place.to_owned(),
        None => text,
    }
}

/// Returns the value of a workload's parameter as it would be written on the command line.
///
/// # Errors
/// It is a table or a list.
pub fn param(name: &str, value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Table(_) | toml::Value::Array(_) => {
            Err(format!("parameter `{name}` must be a number or a word"))
        }
        scalar => Ok(scalar.to_string()),
    }
}
