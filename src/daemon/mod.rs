//! The daemon: start and stop order, signals, supervision.
