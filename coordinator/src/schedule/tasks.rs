//! All tasks of all jobs, each at a place of its own and found by its id.

use std::collections::HashMap;
use std::ops::{Index, IndexMut, Range};

use deltaconv_proto::ids::TaskId;

use super::Task;

/// The place of a task. Those of a job follow each other in the order of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot(u32);

impl Slot {
    /// The lowest that there can be.
    pub(super) const FIRST: Self = Self(0);
    /// The highest.
    pub(super) const LAST: Self = Self(u32::MAX);
}

/// Places that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots(Range<u32>);

impl Slots {
    /// Each of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> + use<> {
        self.0.clone().map(Slot)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// As many of them as `count`, after the first `start`.
    pub(super) fn part(&self, start: usize, count: usize) -> Self {
        let start = self.0.start + start as u32;
        Self(start..start + count as u32)
    }
}

/// Tasks in a chunk.
const CHUNK: usize = 1024;

/// Where tasks are kept. None is ever removed, and none is moved: there may be millions.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    /// All but the last one full.
    chunks: Vec<Vec<Task>>,
    by_id: HashMap<TaskId, Slot>,
}

impl Tasks {
    /// Takes a job's tasks.
    pub(super) fn add(&mut self, tasks: Vec<Task>) -> Slots {
        let first = self.by_id.len() as u32;
        let placed = tasks.iter().zip(first..).map(|(task, slot)| (task.id.clone(), Slot(slot)));
        self.by_id.extend(placed);
        for task in tasks {
            match self.chunks.last_mut() {
                Some(last) if last.len() < CHUNK => last.push(task),
                _ => {
                    let mut chunk = Vec::with_capacity(CHUNK);
                    chunk.push(task);
                    self.chunks.push(chunk);
                }
            }
        }
        Slots(first..self.by_id.len() as u32)
    }

    /// The place of the task of this id.
    pub(super) fn slot(&self, id: &TaskId) -> Option<Slot> {
        self.by_id.get(id).copied()
    }

    /// The task of this id.
    pub(super) fn get(&self, id: &TaskId) -> Option<&Task> {
        self.slot(id).map(|slot| &self[slot])
    }

    /// All of them, in the order in which they came.
    #[cfg(test)]
    pub(super) fn values(&self) -> impl Iterator<Item = &Task> {
        self.chunks.iter().flatten()
    }
}

impl Index<Slot> for Tasks {
    type Output = Task;

    fn index(&self, slot: Slot) -> &Task {
        &self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK]
    }
}

impl IndexMut<Slot> for Tasks {
    fn index_mut(&mut self, slot: Slot) -> &mut Task {
        &mut self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK]
    }
}

impl Index<&TaskId> for Tasks {
    type Output = Task;

    fn index(&self, id: &TaskId) -> &Task {
        &self[self.by_id[id]]
    }
}
