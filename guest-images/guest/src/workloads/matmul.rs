//! The product of two dense matrices, by each accelerator for itself.

use super::{Count, report};
use crate::command::matmul;
use crate::cpu::{Cpu, share};
use crate::devices;
use crate::memory::alloc;
use crate::random::{hash, hash_below};
use crate::verify;

pub fn run(cpu: &Cpu) {
    let n = cpu.param("n");
    let elements = n * n;
    let (a, b, products) = cpu.broadcast(|| {
        (
            alloc("matrix a", elements),
            alloc("matrix b", elements),
            alloc("products", elements * cpu.devices()),
        )
    });
    let product = |device| products.slice(device * elements..(device + 1) * elements);
    for (which, matrix) in (0..).zip([a, b]) {
        let seed = hash(cpu.boot.seed, which);
        // Small integers, so that the sums are exact whatever the order of additions.
        matrix.fill(cpu.share(elements), |i| {
            (hash_below(seed, i, 64) as f64).to_bits()
        });
    }
    devices::on_each(cpu, |device| [matmul(product(device), a, b, n)]);
    let rows = share(n, 1, cpu.count(), cpu.index);
    for row in rows.clone() {
        for column in 0..n {
            let term =
                |k| f64::from_bits(a.get(row * n + k)) * f64::from_bits(b.get(k * n + column));
            let expected: f64 = (0..n).map(term).sum();
            let index = row * n + column;
            for device in 0..cpu.devices() {
                verify::words("products", product(device), index..index + 1, |_| {
                    expected.to_bits()
                });
            }
        }
        cpu.progress(row - rows.start + 1, rows.end - rows.start);
    }
    report!(
        cpu,
        "{} of {n} by {n} matrices right",
        Count(cpu.devices(), "product")
    );
}
