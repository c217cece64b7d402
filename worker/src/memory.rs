//! How much memory there is to give away: for the KV cache's default size, and
//! to refuse a model that does not fit.

/// Bytes that this process may still take: the machine's, or its control
/// group's if that is less. `None` where neither can be read.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // "max" is no number, and no limit. File pages count as used there, yet make
    // way for others.
    let group = read("memory.max").map(|limit| {
        let stat = std::fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
        let used = read("memory.current").unwrap_or_default();
        limit.saturating_sub(used.saturating_sub(file_pages(&stat)))
    });
    machine.into_iter().chain(group).min()
}

/// Bytes of file pages in a control group's memory.stat, shared memory not among
/// them.
fn file_pages(stat: &str) -> u64 {
    let of = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    of("inactive_file").saturating_add(of("active_file"))
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_groups_file_pages_can_be_taken_back() {
        let stat = "anon 7\nfile 900\ninactive_anon 5\nactive_file 20\ninactive_file 300\n";
        assert_eq!(file_pages(stat), 320);
        assert_eq!((file_pages(""), file_pages("active_file many")), (0, 0));
    }

    #[test]
    fn the_kernels_number_is_in_kib() {
        let text = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n";
        assert_eq!(available(text), Some(8000 * 1024));
        assert_eq!(available("MemTotal: 1 kB"), None);
        assert_eq!(available("MemAvailable: many"), None);
    }
}
