//! What the operator's file says, and what the program may use.
