mod home;
mod house;
mod queue;
