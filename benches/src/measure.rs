//! What the side-by-side runs share: samples of interleaved rounds, and the machine's busy time.

use std::{fmt, fs, io, time::Duration};

/// Figures of one contender, one a round.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the figure of a round.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The middle figure, of an even number the upper of the two; not a number without any.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The figure that this share of all is below; not a number without any.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() as f64 * share) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// The quotients of two contenders, round by round: what drifts between rounds is in neither.
    pub fn per(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

/// Median, and the spread from the least to the greatest.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, least, most) = (self.median(), self.quantile(0.0), self.quantile(1.0));
        let text = match median.abs() {
            m if m >= 100.0 => format!("{median:.0} ({least:.0}–{most:.0})"),
            m if m >= 10.0 => format!("{median:.1} ({least:.1}–{most:.1})"),
            _ => format!("{median:.2} ({least:.2}–{most:.2})"),
        };
        f.pad(&text)
    }
}

/// How long all processors of the machine together have worked since it started, whoever for: what the kernel does on
/// behalf of packets is charged to no process. Time stolen by a hypervisor is not ours.
///
/// # Errors
/// `/proc/stat` can't be read.
pub fn busy() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).flat_map(str::parse).collect();
    // proc_stat(5): user, nice, system, idle, iowait, irq, softirq; in USER_HZ, which is 100 everywhere.
    let ticks: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&field| fields.get(field)).sum();
    Ok(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up() {
        let samples = Samples(vec![3.0, 1.0, 2.0]);
        assert_eq!(samples.to_string(), "2.00 (1.00–3.00)");
        assert_eq!(samples.per(&Samples(vec![3.0, 2.0, 1.0])).to_string(), "1.00 (0.50–2.00)");
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn the_machine_works() {
        let before = busy().unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(50) {}
        assert!(busy().unwrap() > before);
    }
}
