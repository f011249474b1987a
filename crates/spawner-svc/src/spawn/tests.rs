//! The life cycle with a real store, gate and tunnel; only the batch systems are fakes.

mod churn;
mod home;
mod house;
mod limits;
mod notes;
mod queue;
mod upgrade;
