//! What a parser may take: memory, counted by the allocator, and the stack of a thread. Time is libFuzzer's to limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Stack of a thread of tokio's, or of an attempt.
const STACK: u64 = 2 << 20;

/// Held by this process, and how much it may be.
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, which ends the process where a run takes more than it may.
pub(crate) struct Counted;

unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while one is copied to the other.
        take(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

fn take(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    let most = MOST.load(Ordering::Relaxed);
    if held > most {
        // Once: what says so may allocate.
        MOST.store(usize::MAX, Ordering::Relaxed);
        let _ = writeln!(
            std::io::stderr(),
            "MEMORY: {bytes} bytes more make {held}, and {most} are the most\n{}",
            std::backtrace::Backtrace::force_capture()
        );
        std::process::abort();
    }
}

/// Runs something that may hold so many bytes more.
pub(crate) fn within(bytes: usize, run: impl FnOnce()) {
    MOST.store(HELD.load(Ordering::Relaxed).saturating_add(bytes), Ordering::Relaxed);
    run();
    MOST.store(usize::MAX, Ordering::Relaxed);
}

/// The main thread, on which targets run, gets no more stack than those threads have on which parsers run.
pub(crate) fn bound_the_stack() {
    let stack = rustix::process::Rlimit { current: Some(STACK), maximum: Some(STACK) };
    rustix::process::setrlimit(rustix::process::Resource::Stack, stack).expect("less can always be asked for");
}
