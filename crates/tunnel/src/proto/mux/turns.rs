//! Whose turn it is: what is put into the next message, small things first.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::BytesMut;

use super::{MESSAGE_BYTES, Mux};
use crate::proto::frame;
use crate::proto::lane::Record;
use crate::proto::stream::{CHUNK_BYTES, Queued};

/// So many streams rarely speak at the same moment.
const FEW_STREAMS: usize = 8;

impl Mux {
    pub(super) fn queue_control(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.in_control
            && stream.has_control()
        {
            stream.in_control = true;
            self.control.push_back(id);
            self.wants_lane = true;
        }
    }

    pub(super) fn schedule(&mut self, id: u64, now: Instant) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.queued == Queued::No
            && stream.can_send(self.limits.max_unconfirmed_of_stream)
        {
            stream.queued = stream.queue_for(now);
            match stream.queued {
                Queued::Bulk => self.bulk.push_back(id),
                _ => self.sparse.push_back(id),
            }
            self.wants_lane = true;
        }
    }

    /// Lets streams go on that waited until less is unconfirmed.
    fn unpark(&mut self, now: Instant) {
        if self.unconfirmed < self.limits.max_unconfirmed {
            for id in std::mem::take(&mut self.parked) {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.queued = Queued::No;
                }
                self.schedule(id, now);
            }
        }
    }

    /// Takes a stream out of those that wait: what was lost is sent again, however much is unconfirmed.
    pub(super) fn unpark_one(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.queued == Queued::Parked
        {
            stream.queued = Queued::No;
            self.parked.retain(|other| *other != id);
        }
    }

    /// Whether it is worth to wait for the next turn of other tasks before a message is made: many streams, none of bulk.
    pub(crate) fn gathers(&self) -> bool {
        self.streams.len() >= FEW_STREAMS && self.bulk.is_empty()
    }

    /// Puts what streams have to say beside their bytes.
    pub(crate) fn fill_control(&mut self, out: &mut BytesMut, records: &mut Vec<Record>) {
        if self.grant_due {
            self.grant_due = false;
            frame::put_numbers(out, frame::STREAMS, &[self.granted]);
            records.push(Record::Streams);
        }
        while out.len() < MESSAGE_BYTES
            && let Some(id) = self.control.pop_front()
        {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.in_control = false;
                stream.put_control(id, out, records);
            }
        }
    }

    /// Puts bytes of streams that say little, in turn, up to `room`.
    pub(crate) fn fill_sparse(
        &mut self,
        out: &mut BytesMut,
        records: &mut Vec<Record>,
        room: u64,
        now: Instant,
    ) {
        self.fill_in_turn(|mux| &mut mux.sparse, out, records, room, now);
    }

    /// Puts bytes of bulk streams, a chunk of each in turn, up to `room`.
    pub(crate) fn fill_bulk(
        &mut self,
        out: &mut BytesMut,
        records: &mut Vec<Record>,
        room: u64,
        now: Instant,
    ) {
        self.fill_in_turn(|mux| &mut mux.bulk, out, records, room, now);
    }

    fn fill_in_turn(
        &mut self,
        waiting: fn(&mut Self) -> &mut VecDeque<u64>,
        out: &mut BytesMut,
        records: &mut Vec<Record>,
        room: u64,
        now: Instant,
    ) {
        self.unpark(now);
        let enough = MESSAGE_BYTES.min(out.len() + room as usize);
        while out.len() < enough
            && let Some(id) = waiting(self).pop_front()
        {
            self.fill_from(id, out, records, now);
        }
    }

    fn fill_from(&mut self, id: u64, out: &mut BytesMut, records: &mut Vec<Record>, now: Instant) {
        let (max_unsent, most) = (self.limits.max_unsent, self.limits.max_unconfirmed_of_stream);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if self.unconfirmed >= self.limits.max_unconfirmed && !stream.send.has_lost() {
            stream.queued = Queued::Parked;
            self.parked.push_back(id);
            return;
        }
        let was = std::mem::replace(&mut stream.queued, Queued::No);
        let Some((offset, bytes, again)) = stream.send.take(CHUNK_BYTES, stream.may_send_to(most)) else {
            return;
        };
        let length = bytes.len() as u64;
        frame::put_with(out, frame::DATA, &[id, offset], &bytes);
        records.push(Record::Data(id, offset..offset + length));
        if !again {
            self.bytes_out += length;
            self.unconfirmed += length;
        }
        stream.note_sent(length, now);
        if stream.fin_due() {
            stream.put_control(id, out, records);
        }
        if stream.writer_waits && stream.send.unsent() <= max_unsent / 2 {
            stream.writer_waits = false;
            self.wakes.extend(stream.writer.take());
        }
        if stream.can_send(most) {
            stream.queued = if was == Queued::Bulk { was } else { stream.queue_for(now) };
            match stream.queued {
                Queued::Bulk => self.bulk.push_back(id),
                _ => self.sparse.push_back(id),
            }
        }
    }
}
