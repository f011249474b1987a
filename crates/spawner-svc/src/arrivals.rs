//! Where agents arrive: tickets, the gate, and what is reachable.
