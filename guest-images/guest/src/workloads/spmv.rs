//! A sparse matrix times a vector, by each accelerator for itself.

use super::{Count, Grouped, report};
use crate::command::spmv;
use crate::cpu::Cpu;
use crate::csr::Csr;
use crate::devices;
use crate::memory::alloc;
use crate::random::{hash, hash_below};
use crate::verify;

pub fn run(cpu: &Cpu) {
    let rows = cpu.param("rows");
    let matrix = Csr::random(cpu, rows, cpu.param("degree"));
    let entries = matrix.col.len();
    let (val, x, products) = cpu.broadcast(|| {
        (
            alloc("matrix entries", entries),
            alloc("the vector", rows),
            alloc("products", rows * cpu.devices()),
        )
    });
    let product = |device| products.slice(device * rows..(device + 1) * rows);
    // Small integers, so that the sums are exact whatever the order of additions.
    let [val_seed, x_seed] = [2, 3].map(|which| hash(cpu.boot.seed, which));
    val.fill(cpu.share(entries), |i| {
        (hash_below(val_seed, i, 1024) as f64).to_bits()
    });
    x.fill(cpu.share(rows), |i| {
        (hash_below(x_seed, i, 1024) as f64).to_bits()
    });

    devices::hint(cpu, &[matrix.row, matrix.col, val]);
    devices::on_each(cpu, |device| {
        [spmv(product(device), matrix.row, matrix.col, val, x)]
    });
    cpu.progress(1, 2);
    for row in cpu.share(rows) {
        let term =
            |entry| f64::from_bits(val.get(entry)) * f64::from_bits(x.get(matrix.col.get(entry)));
        let expected: f64 = matrix.entries(row).map(term).sum();
        for device in 0..cpu.devices() {
            verify::words("products", product(device), row..row + 1, |_| {
                expected.to_bits()
            });
        }
    }
    cpu.progress(2, 2);
    report!(
        cpu,
        "{} of a matrix with {} and {} entries right",
        Count(cpu.devices(), "product"),
        Count(rows, "row"),
        Grouped(entries)
    );
}
