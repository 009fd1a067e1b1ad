//! Where memory comes from. A coordinator's messages and records are many small allocations, which glibc takes twice as long
//! for as mimalloc, and musl far longer, behind one lock; pieces of models and samples are few and large, and both give those back
//! to the system once they are freed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use mimalloc::MiMalloc;

/// Bytes from which on an allocation is the system's.
pub(crate) const LARGE: usize = 1 << 20;

/// mimalloc for what is small, and the system's allocator for what is large.
pub(crate) struct BySize;

fn is_small(size: usize) -> bool {
    size < LARGE
}

// SAFETY: a layout's size decides who gives memory and who takes it back, and both are told the layout that it was given with.
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that either asks for.
        unsafe { if is_small(layout.size()) { MiMalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { if is_small(layout.size()) { MiMalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; the size is that with which it was allocated.
        unsafe {
            if is_small(layout.size()) { MiMalloc.dealloc(memory, layout) } else { System.dealloc(memory, layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above. The caller promises that `size` makes a layout with this alignment; what is copied lies within both.
        unsafe {
            match (is_small(layout.size()), is_small(size)) {
                (true, true) => MiMalloc.realloc(memory, layout, size),
                (false, false) => System.realloc(memory, layout, size),
                (true, false) | (false, true) => {
                    let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(memory, moved, layout.size().min(size));
                        self.dealloc(memory, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_and_shrinks_past_the_limit_keeps_its_bytes() {
        let pattern = |size: usize| -> Vec<u8> { (0..size).map(|i| (i % 251) as u8).collect() };
        let mut bytes = pattern(LARGE - 100);
        bytes.reserve_exact(LARGE);
        assert_eq!(bytes, pattern(LARGE - 100));
        bytes.extend_from_slice(&pattern(LARGE));
        bytes.truncate(1000);
        bytes.shrink_to_fit();
        assert_eq!(bytes, pattern(1000));
        assert!(vec![0_u8; 3 * LARGE].iter().all(|byte| *byte == 0));
    }
}
