//! Links the guest as a static ELF file without start files, where the memory map wants it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let image_base = format!("-Wl,--image-base={:#x}", hmmvisor_abi::map::IMAGE_BASE);
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        &image_base,
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=0x1000",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
