//! The teacher in candle.
