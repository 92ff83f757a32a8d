//! Tests of the registers with drivers that use them rightly and wrongly.

use super::*;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

fn registers() -> Registers {
    Registers::new(Profile {
        id: 4,
        features: VERSION_1 | 0b101,
        queues: vec![8, 64],
        config: vec![1, 2, 3, 4, 5, 6, 7, 8],
        writable: vec![4..8, 8..8],
    })
}

fn read(registers: &Registers, offset: u32) -> u32 {
    let mut data = [0; 4];
    registers.read(offset.into(), &mut data);
    u32::from_le_bytes(data)
}

fn write(registers: &mut Registers, offset: u32, value: u32) -> TransportEffect {
    registers.write(offset.into(), &value.to_le_bytes())
}

fn negotiate(registers: &mut Registers, features: u64) {
    write(registers, VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    write(registers, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    for half in 0..2 {
        write(registers, VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
        let value = (features >> (32 * half)) as u32;
        write(registers, VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    write(registers, VIRTIO_MMIO_STATUS, status);
}

const READY: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

#[test]
fn a_driver_comes_to_a_working_device() {
    let mut it = registers();
    assert_eq!(read(&it, 0), 0x7472_6976);
    assert_eq!((read(&it, 4), read(&it, 8)), (2, 4));
    write(&mut it, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(read(&it, VIRTIO_MMIO_DEVICE_FEATURES), 1);
    write(&mut it, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(read(&it, VIRTIO_MMIO_DEVICE_FEATURES), 0);

    negotiate(&mut it, VERSION_1 | 1);
    assert_eq!(read(&it, VIRTIO_MMIO_STATUS), READY & !DRIVER_OK);
    write(&mut it, VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(read(&it, VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    write(&mut it, VIRTIO_MMIO_QUEUE_NUM, 16);
    write(&mut it, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
    write(&mut it, VIRTIO_MMIO_QUEUE_DESC_HIGH, 7);
    assert_eq!(
        write(&mut it, VIRTIO_MMIO_QUEUE_READY, 1),
        TransportEffect::None
    );
    // A queue that is ready stays where it is.
    write(&mut it, VIRTIO_MMIO_QUEUE_NUM, 32);
    assert!(it.active().is_none());
    assert_eq!(
        write(&mut it, VIRTIO_MMIO_STATUS, READY),
        TransportEffect::Start
    );

    let active = it.active().unwrap();
    assert_eq!(active.features, VERSION_1 | 1);
    assert!(active.queues[0].is_none());
    let queue = active.queues[1].unwrap();
    assert_eq!((queue.size, queue.desc_table), (16, 0x7_0000_1000));
    assert!(!queue.event_idx_enabled);
    assert_eq!(
        write(&mut it, VIRTIO_MMIO_QUEUE_NOTIFY, 1),
        TransportEffect::Notify(1)
    );
    assert_eq!(
        write(&mut it, VIRTIO_MMIO_QUEUE_READY, 0),
        TransportEffect::LetGo
    );

    assert_eq!(
        write(&mut it, VIRTIO_MMIO_STATUS, 0),
        TransportEffect::LetGo
    );
    assert_eq!((read(&it, VIRTIO_MMIO_STATUS), it.resets()), (0, 1));
    assert!(it.active().is_none());
}

#[test]
fn features_that_are_not_offered_are_refused() {
    for features in [VERSION_1 | 0b10, 0b1, 0, VERSION_1 << 1] {
        let mut it = registers();
        negotiate(&mut it, features);
        assert_eq!(read(&it, VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER);
        assert_eq!(
            write(&mut it, VIRTIO_MMIO_STATUS, READY),
            TransportEffect::None
        );
        assert_eq!(read(&it, VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER);
    }
    let mut it = registers();
    negotiate(&mut it, VERSION_1);
    // Too late.
    write(&mut it, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    write(&mut it, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write(&mut it, VIRTIO_MMIO_STATUS, READY);
    assert_eq!(it.active().unwrap().features, VERSION_1);
}

#[test]
fn the_status_goes_one_way() {
    let mut it = registers();
    for (value, status) in [
        (DRIVER, 0),
        (DRIVER_OK | ACKNOWLEDGE, 0),
        (ACKNOWLEDGE, ACKNOWLEDGE),
        (DRIVER, ACKNOWLEDGE),
        (ACKNOWLEDGE | NEEDS_RESET, ACKNOWLEDGE),
        (ACKNOWLEDGE | DRIVER | DRIVER_OK, ACKNOWLEDGE),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER),
        (0, 0),
    ] {
        write(&mut it, VIRTIO_MMIO_STATUS, value);
        assert_eq!(read(&it, VIRTIO_MMIO_STATUS), status, "after {value:#x}");
    }
    // Queues are set up after the features.
    assert_eq!(
        write(&mut it, VIRTIO_MMIO_QUEUE_READY, 1),
        TransportEffect::None
    );
    assert_eq!(read(&it, VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn a_device_that_needs_a_reset_does_nothing_before() {
    let mut it = registers();
    assert!(!it.needs_reset());
    write(&mut it, VIRTIO_MMIO_STATUS, 0);
    negotiate(&mut it, VERSION_1);
    write(&mut it, VIRTIO_MMIO_STATUS, READY);
    assert!(it.needs_reset());
    assert!(it.active().is_none());
    assert_eq!(read(&it, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    write(&mut it, VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(read(&it, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    // Not even by a driver that ignores it.
    write(&mut it, VIRTIO_MMIO_STATUS, READY | VIRTIO_CONFIG_S_FAILED);
    assert_eq!(
        read(&it, VIRTIO_MMIO_STATUS),
        READY | NEEDS_RESET | VIRTIO_CONFIG_S_FAILED
    );
    write(&mut it, VIRTIO_MMIO_STATUS, 0);
    assert_eq!(read(&it, VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn the_configuration_space_is_read_and_partly_written() {
    let mut it = registers();
    let mut data = [0; 8];
    it.read(CONFIG, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut data = [0; 4];
    it.read(CONFIG + 6, &mut data);
    assert_eq!(data, [7, 8, 0, 0]);
    let mut data = [0; 2];
    it.read(CONFIG + 3000, &mut data);
    assert_eq!(data, [0, 0]);

    it.write(CONFIG + 4, &[9; 4]);
    assert_eq!(it.config()[4], 5, "before there is a driver");
    write(&mut it, VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    write(&mut it, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    it.write(CONFIG + 4, &[9; 4]);
    it.write(CONFIG + 3, &[7; 2]);
    it.write(CONFIG + 7, &[7; 2]);
    it.write(CONFIG + 3000, &[7; 2]);
    it.write(CONFIG + 3000, &[]);
    assert_eq!(it.config(), [1, 2, 3, 4, 9, 9, 9, 9]);

    let before = read(&it, VIRTIO_MMIO_CONFIG_GENERATION);
    assert!(!it.change_config(|config| config[0] = 77));
    assert_ne!(read(&it, VIRTIO_MMIO_CONFIG_GENERATION), before);
}

#[test]
fn accesses_of_other_sizes_are_none() {
    let mut it = registers();
    let mut data = [0; 8];
    it.read(0, &mut data);
    assert_eq!(data, [0; 8]);
    it.write(VIRTIO_MMIO_STATUS.into(), &[1]);
    it.write(VIRTIO_MMIO_STATUS.into(), &[1; 8]);
    it.write(VIRTIO_MMIO_STATUS as u64 + 2, &[1, 0, 0, 0]);
    assert_eq!(read(&it, VIRTIO_MMIO_STATUS), 0);
    assert_eq!(read(&it, VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
}
