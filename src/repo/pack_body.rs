//! The bytes of a pack on their way to storage: gathered into pieces that suit direct writes, hashed, and, piece by piece,
//! taken in by the parity of the pack.
//!
//! Every byte is copied once, into a piece, in which it may be sealed, and from which it is hashed, written, and its parity is
//! computed. Memory is one piece and a sum, however long the pack. Deliberately not here: what the bytes mean, and names.

use crate::aligned::AlignedBuffer;
use crate::codec::parity::{ParityEncoder, Shape, checksum};
use crate::codec::parity_stream::ParityStream;
use crate::error::Result;
use crate::storage::{ObjectName, ObjectWriter, Published};
use std::sync::{Mutex, PoisonError};

/// Bytes of a piece: larger direct writes measured no faster, and the groups of parity of usual packs divide it.
const PIECE_BYTES: usize = 8 << 20;

/// What is hashed at once: little enough to be in the cache of a core still, and a power of two, so that the tree of the hash
/// is cut where it is widest.
const STRIDE_BYTES: usize = 256 << 10;

/// About what a pack takes of memory while it is open: a piece and the sum for its parity.
pub const OPEN_PACK_BYTES: u64 = 13 << 20;

/// Memory and tables for one pack, used for one after the other.
pub(super) struct Workshop {
    piece: AlignedBuffer,
    stream: Option<ParityStream>,
    encoder: ParityEncoder,
    parity: Vec<u8>,
}

impl Workshop {
    /// For packs that end soon after `pack_bytes`, if they get parity.
    fn new(parity_of_packs: Option<u64>, piece_bytes: usize) -> Workshop {
        let stream = parity_of_packs.and_then(|pack_bytes| ParityStream::for_packs_of(pack_bytes).ok());
        Workshop {
            piece: AlignedBuffer::new(piece_bytes),
            // One whose groups are longer than a piece cannot be fed; such packs are read again.
            stream: stream.filter(|stream| piece_bytes.is_multiple_of(stream.group_bytes())),
            encoder: ParityEncoder::default(),
            parity: Vec::new(),
        }
    }
}

/// The workshops of a transaction.
pub(super) struct Workshops {
    /// The length of usual packs, if packs get parity.
    parity_of_packs: Option<u64>,
    piece_bytes: usize,
    idle: Mutex<Vec<Workshop>>,
}

impl Workshops {
    /// `parity_of_packs` is the length of usual packs, if packs get parity.
    pub(super) fn new(parity_of_packs: Option<u64>) -> Workshops {
        Workshops { parity_of_packs, piece_bytes: PIECE_BYTES, idle: Mutex::default() }
    }

    pub(super) fn take(&self) -> Workshop {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| Workshop::new(self.parity_of_packs, self.piece_bytes))
    }

    pub(super) fn give(&self, mut workshop: Workshop) {
        if let Some(stream) = &mut workshop.stream {
            stream.clear();
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workshop);
    }

    /// With shorter pieces, so that short packs have several.
    #[cfg(test)]
    pub(super) fn with_pieces_of(mut self, bytes: usize) -> Workshops {
        self.piece_bytes = bytes;
        self
    }
}

/// See the module.
pub(super) struct PackBody {
    object: Box<dyn ObjectWriter>,
    workshop: Workshop,
    hasher: blake3::Hasher,
    /// Bytes that stand in the piece.
    gathered: usize,
    /// Those of them that are hashed and have checksums.
    digested: usize,
    bytes: u64,
}

impl PackBody {
    pub(super) fn new(object: Box<dyn ObjectWriter>, workshop: Workshop) -> PackBody {
        PackBody { object, workshop, hasher: blake3::Hasher::new(), gathered: 0, digested: 0, bytes: 0 }
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            // In strides, so that what is hashed has just been copied.
            let (now, behind) = bytes.split_at(bytes.len().min(room.len()).min(STRIDE_BYTES));
            room[..now.len()].copy_from_slice(now);
            self.added(now.len());
            bytes = behind;
        }
        Ok(())
    }

    /// Appends `bytes` bytes, all of which `fill` writes: where they will be written from, if the piece has room for them. Nothing
    /// is appended if it fails.
    pub(super) fn write_filled(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        if let Some(here) = self.room()?.get_mut(..bytes) {
            fill(here)?;
            self.added(bytes);
            return Ok(());
        }
        let mut aside = vec![0; bytes];
        fill(&mut aside)?;
        self.write(&aside)
    }

    /// What is free of the piece, never nothing.
    fn room(&mut self) -> Result<&mut [u8]> {
        let Workshop { piece, stream, .. } = &mut self.workshop;
        // Only once more has come: the last piece stays, so that a pack of one piece has all of it at hand.
        if self.gathered == piece.len() {
            self.object.write(piece.as_slice())?;
            if let Some(stream) = stream {
                stream.absorb(piece.as_slice());
            }
            (self.gathered, self.digested) = (0, 0);
        }
        Ok(&mut piece.as_mut_slice()[self.gathered..])
    }

    /// Counts bytes that were put into the piece, and hashes what has become whole strides.
    fn added(&mut self, bytes: usize) {
        self.gathered += bytes;
        self.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        let Workshop { piece, stream, .. } = &self.workshop;
        // Shards may be longer than strides; both are powers of two. Pieces are whole shards.
        let stride = stream.as_ref().map_or(STRIDE_BYTES, |stream| stream.shard_bytes().max(STRIDE_BYTES));
        let odd = if self.gathered == piece.len() { 0 } else { self.gathered % stride };
        self.digest(self.gathered - odd);
    }

    /// Hashes the piece up to `end`, if it is not yet.
    fn digest(&mut self, end: usize) {
        let Workshop { piece, stream, .. } = &mut self.workshop;
        let Some(bytes) = piece.as_slice().get(self.digested..end) else { return };
        self.hasher.update(bytes);
        if let Some(stream) = stream {
            stream.check(bytes);
        }
        self.digested = end;
    }

    /// The hash of all of it. Nothing may be written after that.
    pub(super) fn hash(&mut self) -> blake3::Hash {
        self.digest(self.gathered);
        self.hasher.finalize()
    }

    /// Makes all of it durable under `name`; it has been hashed.
    pub(super) fn publish(self, name: &ObjectName) -> Result<(Published, PublishedBody)> {
        let PackBody { mut object, workshop, gathered, bytes, .. } = self;
        object.write(&workshop.piece.as_slice()[..gathered])?;
        let published = object.publish(name)?;
        Ok((published, PublishedBody { workshop, gathered, bytes }))
    }
}

/// What is left of the body of a pack that is durable: enough for its parity.
pub(super) struct PublishedBody {
    workshop: Workshop,
    gathered: usize,
    bytes: u64,
}

/// The parity of a pack.
pub(super) struct BodyParity<'b> {
    pub(super) shape: Shape,
    /// Checksums of the data shards, one behind the other.
    pub(super) checksums: Vec<u8>,
    /// The parity shards, one behind the other.
    pub(super) shards: &'b [u8],
}

impl PublishedBody {
    /// The parity of the pack; none if only reading it again can tell.
    pub(super) fn parity(&mut self) -> Result<Option<BodyParity<'_>>> {
        let shape = Shape::of(self.bytes)?;
        let Workshop { piece, stream, encoder, parity } = &mut self.workshop;
        let last = &piece.as_slice()[..self.gathered];
        if self.bytes == last.len() as u64 {
            encoder.encode(last, &shape, parity)?;
            let checksums = last.chunks(shape.shard_bytes).flat_map(checksum).collect();
            return Ok(Some(BodyParity { shape, checksums, shards: parity }));
        }
        let Some(stream) = stream else { return Ok(None) };
        stream.absorb(last);
        let checksums = stream.finish(self.bytes, parity)?.map(<[u8]>::to_vec);
        Ok(checksums.map(|checksums| BodyParity { shape, checksums, shards: parity }))
    }

    /// What the next pack can use.
    pub(super) fn into_workshop(self) -> Workshop {
        self.workshop
    }
}
