//! The machine that this process runs on.

/// Its name, as others know it.
pub(crate) fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("worker").to_owned()
}
