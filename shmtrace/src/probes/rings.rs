//! The probes' buffers of records, mapped: one for each CPU, read without a system call.
//!
//! The writer's side is `shmtrace-ebpf/src/ring.rs`. Both count records since the start; number n lies at n modulo the room
//! and is complete when it bears its mark.

use std::{
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use memmap2::{MmapOptions, MmapRaw};
use shmtrace_common::{Cursor, Kind, Record};

/// Records taken from one CPU before its room is given back: a slow reader must not hold all of it.
const BATCH: u64 = 1024;

/// The buffers of all CPUs.
pub(crate) struct Rings {
    cursors: MmapRaw,
    records: MmapRaw,
    cpus: usize,
    room: u64,
    /// For each CPU, how far it was read, and how far it had begun to write when the present reading began.
    spans: Vec<(u64, u64)>,
    /// CPUs with records in the present reading, and the time of the first of each.
    next: Vec<(usize, u64)>,
    /// What the present reading found so far.
    drained: Drained,
}

/// What a reading found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Records of no known kind, or more of them than there is room for: neither can be without an error in the probes.
    pub foreign: u64,
    /// A record was begun and is not complete: what lies behind it comes with a later reading.
    pub unfinished: bool,
    /// A buffer was more than an eighth full: the next reading should not wait long.
    pub busy: bool,
    /// There is more of what was there when the reading began.
    pub more: bool,
}

impl Rings {
    /// Maps the arrays behind these fds: `cpus` cursors, and `room` records for each, a power of two.
    pub(crate) fn map(
        cursors: impl memmap2::MmapAsRawDesc,
        records: impl memmap2::MmapAsRawDesc,
        cpus: u32,
        room: u32,
    ) -> io::Result<Self> {
        if !room.is_power_of_two() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (cpus, room) = (cpus as usize, room as usize);
        Ok(Self {
            cursors: MmapOptions::new()
                .len(cpus * size_of::<Cursor>())
                .map_raw(cursors)?,
            records: MmapOptions::new()
                .len(cpus * room * size_of::<Record>())
                .map_raw_read_only(records)?,
            cpus,
            room: room as u64,
            spans: vec![(0, 0); cpus],
            next: Vec::with_capacity(cpus),
            drained: Drained::default(),
        })
    }

    /// Hands the records that are there now to `each`, in the order of their times, `most` at a time: the next call goes on
    /// with those that were there at the first.
    pub(crate) fn drain(&mut self, most: usize, mut each: impl FnMut(&Record)) -> Drained {
        if !self.drained.more {
            self.begin();
        }
        let mut left = most;
        // There are few CPUs with records at a time, so the earliest is found by looking.
        while let Some(place) = (0..self.next.len()).min_by_key(|place| self.next[*place].1) {
            if left == 0 {
                self.drained.more = true;
                return self.drained;
            }
            left -= 1;
            let cpu = self.next[place].0;
            let record = self.take(cpu);
            if Kind::from_u8(record.kind).is_some() {
                each(&record);
            } else {
                self.drained.foreign = self.drained.foreign.saturating_add(1);
            }
            match self.first(cpu) {
                Some(at) => self.next[place].1 = at,
                None => drop(self.next.swap_remove(place)),
            }
        }
        self.drained.more = false;
        for cpu in 0..self.cpus {
            let (read, until) = self.spans[cpu];
            self.drained.unfinished |= read != until;
            self.release(cpu);
        }
        self.drained
    }

    /// Takes note of how far each CPU has come.
    fn begin(&mut self) {
        self.drained = Drained::default();
        for cpu in 0..self.cpus {
            let head = self.head(cpu).load(Ordering::Acquire);
            let (read, until) = &mut self.spans[cpu];
            *until = head;
            let waiting = head.wrapping_sub(*read);
            self.drained.busy |= waiting > self.room / 8;
            if waiting > self.room {
                let gone = waiting - self.room;
                self.drained.foreign = self.drained.foreign.saturating_add(gone);
                *read = head.wrapping_sub(self.room);
            }
        }
        // Each CPU's records are in order.
        self.next.clear();
        for cpu in 0..self.cpus {
            if let Some(at) = self.first(cpu) {
                self.next.push((cpu, at));
            }
        }
    }

    /// From now on the next record is to wake the reader; false if one is there already.
    pub(super) fn rest(&self) -> bool {
        self.set_resting(true);
        // Partner of the reservation of a record's place, a full barrier: either the head is seen here to have moved, or the
        // record's writer sees that the reader rests.
        fence(Ordering::SeqCst);
        let nothing =
            (0..self.cpus).all(|cpu| self.head(cpu).load(Ordering::Acquire) == self.spans[cpu].0);
        if !nothing {
            self.wake_up();
        }
        nothing
    }

    /// The reader comes by itself again.
    pub(super) fn wake_up(&self) {
        self.set_resting(false);
    }

    fn set_resting(&self, resting: bool) {
        for cpu in 0..self.cpus {
            // SAFETY: a mapped, aligned word that is only accessed atomically on this side.
            let word =
                unsafe { AtomicU64::from_ptr(&raw mut (*self.cursor(cpu).as_ptr()).resting) };
            word.store(u64::from(resting), Ordering::Relaxed);
        }
    }

    /// Records that found no room, since the start.
    pub(super) fn lost(&self) -> u64 {
        let lost = |cpu| {
            // SAFETY: a mapped, aligned word that is only accessed atomically on this side.
            let word = unsafe { AtomicU64::from_ptr(&raw mut (*self.cursor(cpu).as_ptr()).lost) };
            word.load(Ordering::Acquire)
        };
        (0..self.cpus).map(lost).fold(0, u64::wrapping_add)
    }

    /// When the next record of a CPU was made, if the present reading has a complete one left.
    fn first(&self, cpu: usize) -> Option<u64> {
        let (read, until) = self.spans[cpu];
        if read == until {
            return None;
        }
        let record = self.place(cpu, read);
        // SAFETY: inside of the mapping, and any bytes are a record. The mark is an aligned word that is only accessed
        // whole.
        unsafe {
            // Acquire: the rest was written before the mark.
            let mark = AtomicU32::from_ptr(&raw mut (*record).mark).load(Ordering::Acquire);
            (mark == Record::mark(read)).then(|| (&raw const (*record).at).read_volatile())
        }
    }

    /// Takes the next record of a CPU, which is complete.
    fn take(&mut self, cpu: usize) -> Record {
        let read = self.spans[cpu].0;
        // SAFETY: as above. It is complete, and the writer does not touch it before it sees a tail beyond it.
        let record = unsafe { self.place(cpu, read).read_volatile() };
        let next = read.wrapping_add(1);
        self.spans[cpu].0 = next;
        if next.is_multiple_of(BATCH) {
            self.release(cpu);
        }
        record
    }

    /// Where the record with this number of a CPU lies.
    fn place(&self, cpu: usize, number: u64) -> *mut Record {
        assert!(cpu < self.cpus);
        // A power of two: dividing would take as long as all the rest.
        let place = cpu * self.room as usize + (number & (self.room - 1)) as usize;
        // SAFETY: inside of the mapping.
        unsafe { start::<Record>(&self.records).add(place) }
    }

    /// Lets the writer have what was read.
    fn release(&self, cpu: usize) {
        self.tail(cpu).store(self.spans[cpu].0, Ordering::Release);
    }

    fn head(&self, cpu: usize) -> &AtomicU64 {
        // SAFETY: a mapped, aligned word that is only accessed atomically on this side.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.cursor(cpu).as_ptr()).head) }
    }

    fn tail(&self, cpu: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.cursor(cpu).as_ptr()).tail) }
    }

    fn cursor(&self, cpu: usize) -> NonNull<Cursor> {
        assert!(cpu < self.cpus);
        // SAFETY: inside of the mapping, which starts at a page and is never null.
        unsafe { NonNull::new_unchecked(start::<Cursor>(&self.cursors).add(cpu)) }
    }
}

/// The first element of a mapped array; a mapping starts at a page, which is aligned for any element.
fn start<T>(array: &MmapRaw) -> *mut T {
    array.as_mut_ptr().cast()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const CPUS: u32 = 2;
    const ROOM: u32 = 2048;

    /// The probes' side, on files in memory.
    struct Writer {
        cursors: MmapRaw,
        records: MmapRaw,
    }

    impl Writer {
        fn put(&self, cpu: usize, at: u64, kind: u8) -> bool {
            // SAFETY: as in the probes; the reader runs in the same thread.
            unsafe {
                let cursor = start::<Cursor>(&self.cursors).add(cpu);
                let (head, tail) = ((*cursor).head, (*cursor).tail);
                if head - tail >= u64::from(ROOM) {
                    return false;
                }
                let place = cpu * ROOM as usize + (head % u64::from(ROOM)) as usize;
                let record = start::<Record>(&self.records).add(place);
                (*record).at = at;
                (*record).kind = kind;
                (*record).mark = Record::mark(head);
                (*cursor).head = head + 1;
            }
            true
        }

        /// Takes the mark from the record written last, as if it were still being written.
        fn unfinish(&self, cpu: usize, unfinished: bool) {
            // SAFETY: as above.
            unsafe {
                let head = (*start::<Cursor>(&self.cursors).add(cpu)).head - 1;
                let place = cpu * ROOM as usize + (head % u64::from(ROOM)) as usize;
                let mark = if unfinished { 0 } else { Record::mark(head) };
                (*start::<Record>(&self.records).add(place)).mark = mark;
            }
        }
    }

    fn pair() -> (Writer, Rings) {
        let file = |len: usize| -> File {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len as u64).unwrap();
            file
        };
        let cursors = file(CPUS as usize * size_of::<Cursor>());
        let records = file((CPUS * ROOM) as usize * size_of::<Record>());
        let writer = Writer {
            cursors: MmapOptions::new().map_raw(&cursors).unwrap(),
            records: MmapOptions::new().map_raw(&records).unwrap(),
        };
        let rings = Rings::map(&cursors, &records, CPUS, ROOM).unwrap();
        (writer, rings)
    }

    fn times(rings: &mut Rings) -> (Vec<u64>, Drained) {
        let mut times = Vec::new();
        let drained = rings.drain(usize::MAX, |record| times.push(record.at));
        (times, drained)
    }

    #[test]
    fn records_of_all_cpus_come_in_the_order_of_their_times() {
        let (writer, mut rings) = pair();
        for (cpu, at) in [(0, 1), (0, 4), (0, 5), (1, 2), (1, 3), (1, 6)] {
            assert!(writer.put(cpu, at, Kind::Ring as u8));
        }
        assert_eq!(times(&mut rings).0, [1, 2, 3, 4, 5, 6]);
        assert_eq!(times(&mut rings), (Vec::new(), Drained::default()));
    }

    #[test]
    fn a_reading_in_pieces_takes_what_was_there_at_its_beginning() {
        let (writer, mut rings) = pair();
        for at in 1..=5 {
            writer.put(at as usize % 2, at, Kind::Ring as u8);
        }
        let mut seen = Vec::new();
        let mut piece = |rings: &mut Rings| rings.drain(2, |record| seen.push(record.at)).more;
        assert!(piece(&mut rings));
        writer.put(0, 6, Kind::Ring as u8);
        assert!(piece(&mut rings));
        assert!(!piece(&mut rings), "the last one of the first reading");
        assert!(!piece(&mut rings), "another reading");
        assert_eq!(seen, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_full_buffer_takes_no_more_until_it_was_read_and_nothing_is_lost_at_the_wrap() {
        let (writer, mut rings) = pair();
        let mut at = 0;
        for _ in 0..3 {
            let first = at;
            while writer.put(1, at, Kind::Take as u8) {
                at += 1;
            }
            assert_eq!(at - first, u64::from(ROOM));
            let (seen, drained) = times(&mut rings);
            assert_eq!(seen, (first..at).collect::<Vec<_>>());
            assert_eq!(
                drained,
                Drained {
                    busy: true,
                    ..Drained::default()
                }
            );
        }
    }

    #[test]
    fn what_found_no_room_on_any_cpu_is_counted() {
        let (writer, rings) = pair();
        assert_eq!(rings.lost(), 0);
        for (cpu, lost) in [(0, 3), (1, 40)] {
            // SAFETY: nobody else is there.
            unsafe { (*start::<Cursor>(&writer.cursors).add(cpu)).lost = lost };
        }
        assert_eq!(rings.lost(), 43);
    }

    #[test]
    fn what_is_no_record_is_counted_and_not_handed_over() {
        let (writer, mut rings) = pair();
        writer.put(0, 1, 0);
        writer.put(0, 2, Kind::Map as u8);
        let (seen, drained) = times(&mut rings);
        assert_eq!(seen, [2]);
        assert_eq!(drained.foreign, 1);
    }

    #[test]
    fn a_head_that_ran_away_says_how_many_are_gone() {
        let (writer, mut rings) = pair();
        // SAFETY: nobody else is there.
        unsafe { (*start::<Cursor>(&writer.cursors)).head = u64::from(ROOM) + 7 };
        let (seen, drained) = times(&mut rings);
        assert!(seen.is_empty());
        assert_eq!(drained.foreign, 7);
    }

    #[test]
    fn a_head_that_goes_back_is_an_error_and_no_more() {
        let (writer, mut rings) = pair();
        for cpu in 0..2 {
            writer.put(cpu, 1, Kind::Ring as u8);
        }
        assert_eq!(times(&mut rings).0, [1, 1]);
        for head in [0, 1 << 40, 5] {
            for cpu in 0..2 {
                // SAFETY: nobody else is there.
                unsafe { (*start::<Cursor>(&writer.cursors).add(cpu)).head = head };
            }
            let (_, drained) = times(&mut rings);
            assert!(drained.foreign > 0, "{head}: {drained:?}");
        }
    }

    #[test]
    fn a_reader_rests_only_when_it_has_read_everything_and_says_so_to_every_cpu() {
        let (writer, mut rings) = pair();
        // SAFETY: nobody else is there.
        let resting = |cpu| unsafe { (*start::<Cursor>(&writer.cursors).add(cpu)).resting };
        writer.put(1, 1, Kind::Ring as u8);
        assert!(!rings.rest());
        assert_eq!([resting(0), resting(1)], [0, 0]);
        rings.drain(usize::MAX, |_| {});
        assert!(rings.rest());
        assert_eq!([resting(0), resting(1)], [1, 1]);
        rings.wake_up();
        assert_eq!([resting(0), resting(1)], [0, 0]);
    }

    #[test]
    fn an_unfinished_record_holds_back_its_own_cpu_only() {
        let (writer, mut rings) = pair();
        for lap in 0..2 {
            let first = lap * 10_000;
            writer.put(0, first, Kind::Ring as u8);
            writer.put(0, first + 2, Kind::Ring as u8);
            writer.unfinish(0, true);
            writer.put(0, first + 3, Kind::Ring as u8);
            writer.put(1, first + 4, Kind::Ring as u8);
            let (seen, drained) = times(&mut rings);
            assert_eq!(seen, [first, first + 4]);
            assert!(drained.unfinished);

            // Now the one in the middle is complete.
            // SAFETY: nobody else is there.
            unsafe { (*start::<Cursor>(&writer.cursors)).head -= 1 };
            writer.unfinish(0, false);
            writer.put(0, first + 3, Kind::Ring as u8);
            let (seen, drained) = times(&mut rings);
            assert_eq!(seen, [first + 2, first + 3]);
            assert_eq!(drained, Drained::default());
            // Another lap: what lies there bears an old mark.
            for at in 0..u64::from(ROOM) - 3 {
                writer.put(0, first + 10 + at, Kind::Ring as u8);
            }
            assert_eq!(times(&mut rings).0.len(), ROOM as usize - 3);
        }
    }
}
