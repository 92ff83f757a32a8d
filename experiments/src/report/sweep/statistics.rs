//! Means over seeds and how sure they are.

/// A mean and its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) mean: f64,
    /// The interval is the mean ± this; `None` with a single value, about which nothing can be said.
    pub(super) error: Option<f64>,
    /// Number of values.
    pub(super) count: usize,
}

impl Estimate {
    /// Estimates the mean and its error by Student's t distribution; `None` without values.
    pub(super) fn of(values: &[f64]) -> Option<Estimate> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let n = count as f64;
        let mean = values.iter().sum::<f64>() / n;
        let error = (count > 1).then(|| {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            let standard_error = (squares / (n - 1.0) / n).sqrt();
            t_quantile(count - 1) * standard_error
        });
        Some(Estimate { mean, error, count })
    }

    /// Whether the values differ, so that the mean has an interval.
    pub(super) fn has_error(&self) -> bool {
        self.error.is_some_and(|error| error > 0.0)
    }

    pub(super) fn low(&self) -> f64 {
        (self.mean - self.error.unwrap_or(0.0)).max(0.0)
    }

    pub(super) fn high(&self) -> f64 {
        self.mean + self.error.unwrap_or(0.0)
    }
}

/// Returns the 97.5 % quantile of the t distribution.
fn t_quantile(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    match TABLE.get(freedom.wrapping_sub(1)) {
        Some(quantile) => *quantile,
        // The first term of the expansion by 1/freedom: right to three digits from here on.
        None => 1.95996 + 2.3722 / freedom as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_student_s() {
        assert_eq!(Estimate::of(&[]), None);
        let one = Estimate::of(&[5.0]).unwrap();
        assert_eq!((one.mean, one.error, one.low()), (5.0, None, 5.0));
        // Mean 3, standard deviation √2.5, t(4) = 2.776.
        let five = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert!((five.error.unwrap() - 2.776 * 0.5f64.sqrt()).abs() < 1e-9);
        assert_eq!(Estimate::of(&[2.0, 2.0]).unwrap().error, Some(0.0));
        assert!((t_quantile(60) - 2.000).abs() < 1e-3, "{}", t_quantile(60));
        assert!((t_quantile(120) - 1.980).abs() < 1e-3);
    }
}
