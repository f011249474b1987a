//! Two real ends over real sockets.

mod carry;
mod house;
