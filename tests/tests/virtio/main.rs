//! The virtio devices, driven by a driver in this process, on real memory that migrates.

mod balloon;
mod block;
mod block_durable;
mod block_in_hand;
mod entropy;
mod malformed;
mod transport;
