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
        assert_eq!(count(1, "vCPU"), "1 vCPU");
        assert_eq!(count(2000, "vCPU"), "2,000 vCPUs");
    }
}
