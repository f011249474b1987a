//! Two real ends over real sockets.

mod carry;
mod door;
mod house;
mod recover;
mod way;
