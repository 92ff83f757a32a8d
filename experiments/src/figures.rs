//! Figures as people read them: counts with commas, sizes in binary units, one thing and several things. Files for
//! programs have plain digits.

/// Returns a count with a comma between thousands: `13,363`.
pub fn grouped(number: u64) -> String {
    group(&number.to_string())
}

/// Commas between thousands of a row of digits, which may have a sign before it.
pub(crate) fn group(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        let left = digits.len() - index;
        if index > 0 && left.is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a measured amount of memory, rounded: `4 KiB`, `2.5 MiB`. One that was configured is a [`Size`](crate::size::Size),
/// which is exact.
pub fn bytes(number: u64) -> String {
    let scaled = |unit: u64| number as f64 / unit as f64;
    match number {
        0..0x400 => format!("{number} B"),
        0x400..0x10_0000 => format!("{:.0} KiB", scaled(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", scaled(1 << 20)),
        _ => format!("{:.1} GiB", scaled(1 << 30)),
    }
}

/// Units of time, in nanoseconds.
pub(crate) const TIMES: [(&str, f64); 4] = [("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)];

/// Returns a measured time: `850 ns`, `7.7 ms`. Each time has the unit that suits it.
pub fn time(nanoseconds: f64) -> String {
    let (name, factor) = fitting(&TIMES, nanoseconds);
    format!("{} {name}", number(nanoseconds / factor))
}

/// Returns the unit that suits values of up to `largest`, with its factor.
pub(crate) fn fitting(units: &[(&'static str, f64)], largest: f64) -> (&'static str, f64) {
    let fits = units
        .iter()
        .rev()
        .find(|(_, factor)| largest >= *factor * 2.0);
    *fits.unwrap_or(&units[0])
}

/// Returns a number, as short as three digits allow; thousands in groups.
pub(crate) fn number(value: f64) -> String {
    let text = match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => trim(format!("{value:.1}")),
        size if size >= 0.01 => trim(format!("{value:.2}")),
        _ => return format!("{value:.1e}"),
    };
    match text.contains('.') {
        true => text,
        false => group(&text),
    }
}

fn trim(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `1 vCPU`, `2 vCPUs`.
pub fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(grouped)
        );
        assert_eq!(["-123", "-1,234"], ["-123", "-1234"].map(group));
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(5 << 19), "2.5 MiB");
        let times = [0.0, 850.0, 1_999.0, 12_340.0, 7_700_500.0, 14e6, 5e6, 61e9];
        assert_eq!(
            [
                "0 ns", "850 ns", "1,999 ns", "12.3 µs", "7.7 ms", "14 ms", "5 ms", "61 s"
            ],
            times.map(time)
        );
        assert_eq!(count(1, "vCPU"), "1 vCPU");
        assert_eq!(count(2000, "vCPU"), "2,000 vCPUs");
    }
}
